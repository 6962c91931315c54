// Any machine: vectors of 16 bytes, which every 64-bit processor has. The first include of a file.
#define FASTSPEC_ISA baseline
#define FASTSPEC_VECTOR_BYTES 16
#define FASTSPEC_TILE_ROWS 6
