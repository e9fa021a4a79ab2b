"""The one place that knows timm: any of its models as a map of features, at any image size it can take.

What a model can do is found by asking it, never by its name. Questions of shape are answered by a run on
PyTorch's meta device, which computes shapes and no values: a fraction of a second even for a large model.

Importing this package registers CMT-S with timm: `timm.create_model("cmt_s")`, also for weights files that name it.
"""

from fastmim.backbone import cmt as _cmt  # noqa: F401 - registers itself
from fastmim.backbone.backbone import Backbone
from fastmim.backbone.classifier import Classifier
from fastmim.backbone.names import describe, find, published_input, resolve

__all__ = ["Backbone", "Classifier", "describe", "find", "published_input", "resolve"]
