"""The methods of Flawline: plain functions and small classes, images and parameters in, files out."""
