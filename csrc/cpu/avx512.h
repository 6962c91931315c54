// Machines with AVX-512, which dispatch.cpp has seen. The first include of a file.
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,popcnt")
#define FASTSPEC_ISA avx512
#define FASTSPEC_VECTOR_BYTES 64
#define FASTSPEC_AVX512  // its own instructions may be named
#define FASTSPEC_TILE_ROWS 12
