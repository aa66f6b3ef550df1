"""The towers: histories cut as of a time, the model, its training, ONNX export, the serving runtime, the plugin."""
