"""Samples: calibration data, images, labelled data sets."""
