// What a launcher is given beside the tensors of its operator: on the CPU threads and how much memory they may take, on
// a GPU how float32 rows are multiplied and the memory that the launcher has asked for.
#pragma once

#ifdef __CUDACC__
#define ACTION_THREADS(FIELD)
#define ACTION_WORKSPACE(FIELD) FIELD(Tensor, workspace) /* uint8, of the size that the launcher asks for or more */
#define ACTION_SCRATCH(FIELD) ACTION_WORKSPACE(FIELD)
#define ACTION_PRODUCTS(FIELD) FIELD(bool, tf32) /* whether products of float32 rows may be rounded to it */
#define ACTION_ENTRIES(FIELD)                                                                                  \
  FIELD(Tensor, order)  /* [G, N k] int64 entries of the index, sorted by the row they name; with bank_grad */ \
  FIELD(Tensor, starts) /* [G, M + 1] int64 where in `order` the entries of each row begin */
#else
#define ACTION_THREADS(FIELD) FIELD(int64_t, threads)
#define ACTION_WORKSPACE(FIELD)
#define ACTION_SCRATCH(FIELD) FIELD(int64_t, scratch_bytes)
#define ACTION_PRODUCTS(FIELD)
#define ACTION_ENTRIES(FIELD)
#endif
