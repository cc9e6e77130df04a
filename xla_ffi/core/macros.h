// Marks for code that host and device share.
#pragma once

#if defined(__CUDACC__)
#define ONEEMB_HD __host__ __device__ __forceinline__
// Before a template that calls what it is given: on which side that can run is
// its caller's affair, and nvcc need not warn.
#define ONEEMB_ANY_CALLBACK _Pragma("nv_exec_check_disable")
#else
#define ONEEMB_HD inline
#define ONEEMB_ANY_CALLBACK
#endif

#define ONEEMB_RESTRICT __restrict__
