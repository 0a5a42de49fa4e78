"""The papers' networks as Detectron2's parts; a config names the module that it needs under `IMPORTS`."""
