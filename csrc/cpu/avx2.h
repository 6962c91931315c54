// Machines with AVX2, which dispatch.cpp has seen. The first include of a file.
#pragma GCC target("avx2,fma,popcnt")
#define FASTSPEC_ISA avx2
#define FASTSPEC_VECTOR_BYTES 32
#define FASTSPEC_TILE_ROWS 6
