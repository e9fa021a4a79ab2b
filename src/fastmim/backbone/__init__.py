"""The one place that knows timm: any of its models as a map of features, at any image size it can take.

A model's capabilities are found by trying them, never by its name. Shapes come from a dry run on PyTorch's meta
device, which computes shapes without values: a fraction of a second even for a large model.

Importing this package registers CMT-S with timm, so that `timm.create_model("cmt_s")` and weights files of it work.
"""

from fastmim.backbone import cmt as _cmt  # noqa: F401 - registers the model
from fastmim.backbone.backbone import Backbone
from fastmim.backbone.classifier import Classifier
from fastmim.backbone.names import describe, family, find, published_input, resolve

__all__ = ["Backbone", "Classifier", "describe", "family", "find", "published_input", "resolve"]
