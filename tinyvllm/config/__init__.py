"""YAML files, mappings and the command line to a checked configuration, with the line of everything that is wrong."""

from tinyvllm.config.overrides import Setting
from tinyvllm.config.resolve import Resolved, config_from_mapping, load_config
from tinyvllm.config.schema import Config

__all__ = ["Config", "Resolved", "Setting", "config_from_mapping", "load_config"]
