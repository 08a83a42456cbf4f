// The parts of the CUDA driver's interface that launch a kernel, over the kernels of this library. Included after them.
#pragma once

#include <string>

extern "C" {
int cuCtxGetCurrent(void** context) {
  *context = reinterpret_cast<void*>(1);
  return 0;
}
int cuModuleLoadData(void** module, const void* image) {
  *module = reinterpret_cast<void*>(2);
  return std::string(static_cast<const char*>(image)) == "kernels" ? 0 : 200;  // CUDA_ERROR_INVALID_IMAGE
}
int cuModuleGetFunction(const void** function, void*, const char* name) {
  static const std::string types[3] = {"fp32", "bf16", "fp16"};
  for (int dtype = 0; dtype < 3; ++dtype)
    for (int wide = 0; wide < 2; ++wide) {
      const std::string end = types[dtype] + (wide ? "_4" : "_1");
      if (name == "gd_forward_" + end) return *function = &kForward[dtype][wide], 0;
      if (name == "gd_backward_" + end) return *function = &kBackward[dtype][wide], 0;
    }
  return 500;  // CUDA_ERROR_NOT_FOUND
}
int cuLaunchKernel(const void* function, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned, unsigned,
                   unsigned, void*, void** parameters, void**) {
  const Problem& p = *static_cast<Problem*>(parameters[0]);
  const auto pointer = [&](int i) { return *static_cast<void**>(parameters[i]); };
  const auto floats = [&](int i) { return static_cast<float*>(pointer(i)); };
  const bool forward = function >= kForward && function < kForward + 3;
  if (forward)
    launch(*static_cast<const Forward*>(function), blocks, threads, p, pointer(1), pointer(2));
  else
    launch(*static_cast<const Backward*>(function), blocks, threads, p, pointer(1), pointer(2), floats(3), floats(4),
           floats(5));
  return 0;
}
int cuGetErrorString(int code, const char** text) {
  *text = code == 200 ? "device kernel image is invalid" : nullptr;
  return *text ? 0 : 1;
}
}
