"""The same function in another runtime: ONNX so far."""

from volution.deploy.onnx import OnnxCheck, check_onnx, export_onnx

__all__ = ["OnnxCheck", "check_onnx", "export_onnx"]
