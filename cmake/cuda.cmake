# Decides whether the CUDA kernels are built. CUDA is found, never required.

set(oneemb_cuda_sources OFF)
if(EXISTS "${PROJECT_SOURCE_DIR}/cuda/CMakeLists.txt")
  set(oneemb_cuda_sources ON)
endif()

if(ONEEMB_CUDA STREQUAL "ON" OR
   (ONEEMB_CUDA STREQUAL "AUTO" AND oneemb_cuda_sources))
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER AND ONEEMB_CUDA STREQUAL "ON")
    message(FATAL_ERROR "ONEEMB_CUDA=ON, but no CUDA compiler was found. "
      "Put nvcc on PATH, set CMAKE_CUDA_COMPILER, or use ONEEMB_CUDA=AUTO.")
  elseif(NOT oneemb_cuda_sources)
    message(FATAL_ERROR "ONEEMB_CUDA=ON, but this version has no CUDA "
      "kernels. Use ONEEMB_CUDA=AUTO or OFF.")
  elseif(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    add_subdirectory(cuda)
  endif()
endif()
