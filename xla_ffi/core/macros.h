// Marks for code that host and device share.
#pragma once

#if defined(__CUDACC__)
#define ONEEMB_HD __host__ __device__ __forceinline__
#else
#define ONEEMB_HD inline
#endif

#define ONEEMB_RESTRICT __restrict__
