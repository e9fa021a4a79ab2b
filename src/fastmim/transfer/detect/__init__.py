"""Object detection: boxes, and masks where there are any, by Mask R-CNN."""
