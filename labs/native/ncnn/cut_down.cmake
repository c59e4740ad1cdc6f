# ncnn with nothing but what SignNet needs. An initial cache for CMake, read before ncnn's own CMakeLists.txt:
#   cmake -DNCNN_SOURCE=FOLDER -C cut_down.cmake -S FOLDER -B BUILD
cmake_policy(VERSION 3.10...3.30)

# The layers of signnet's .param file, and those that these make for themselves: padding, the packing of channels into
# groups, conversions of numbers, the activation inside a convolution.
set(needed
  Input Convolution ConvolutionDepthWise Split BinaryOp Reduction InnerProduct
  Padding Packing Flatten Cast Clip)

file(STRINGS "${NCNN_SOURCE}/src/CMakeLists.txt" lines REGEX "^ncnn_add_layer\\(")
foreach(line IN LISTS lines)
  string(REGEX REPLACE "^ncnn_add_layer\\(([A-Za-z0-9]+).*" "\\1" layer "${line}")
  if(NOT layer IN_LIST needed)
    string(TOLOWER "${layer}" layer)
    set("WITH_LAYER_${layer}" OFF CACHE BOOL "")
  endif()
endforeach()

# Not needed: a GPU, 8-bit integers and 16-bit floats, threads, image processing, the C interface, ncnn's own programs.
foreach(part VULKAN INT8 WEIGHT_QUANT BF16 OPENMP THREADS PIXEL PIXEL_ROTATE PIXEL_AFFINE PIXEL_DRAWING
        C_API PLATFORM_API BUILD_BENCHMARK BUILD_TOOLS BUILD_EXAMPLES BUILD_TESTS)
  set("NCNN_${part}" OFF CACHE BOOL "")
endforeach()

# One set of kernels instead of one for each generation of processors. On x86: for AVX2, unless -DNCNN_AVX=OFF asks for
# SSE2. On Arm: for Armv8.0.
set(NCNN_RUNTIME_CPU OFF CACHE BOOL "")
foreach(set AVXVNNI AVXNECONVERT AVX512 FMA4 XOP ARM82 ARM84BF16 ARM84I8MM ARM86SVE)
  set("NCNN_${set}" OFF CACHE BOOL "")
endforeach()

set(CMAKE_BUILD_TYPE Release CACHE STRING "")
set(CMAKE_CXX_FLAGS -w CACHE STRING "")
set(CMAKE_INSTALL_MESSAGE NEVER CACHE STRING "")
