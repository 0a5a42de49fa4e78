"""The papers' networks as MMDetection's parts; a config names the module that it needs under `custom_imports`."""
