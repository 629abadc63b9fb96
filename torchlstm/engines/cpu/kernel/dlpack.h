/* What of DLPack 1.3 this module uses, through a table of C functions: a view of a tensor that Python holds, and a tensor for
 * Python on memory of ours.
 *
 * The layout is that of https://github.com/dmlc/dlpack/blob/v1.3/include/dlpack/dlpack.h; its names stand on the right.
 * torch hands out the table as torch.Tensor.__dlpack_c_exchange_api__, a capsule called "dlpack_exchange_api".
 */
#pragma once
#include <stdint.h>

enum { DL_MAJOR = 1 };                               /* DLPACK_MAJOR_VERSION; of another one only the header is known */
enum { DL_CPU = 1, DL_CUDA_HOST = 3 };               /* DLDeviceType: memory of the host; the second is pinned */
enum { DL_INT, DL_UINT, DL_FLOAT, DL_OPAQUE, DL_BFLOAT, DL_COMPLEX, DL_BOOL }; /* DLDataTypeCode, the first of them */

typedef struct { uint32_t major, minor; } dl_version_t; /* DLPackVersion */
typedef struct { int32_t type, index; } dl_device_t;    /* DLDevice      */
typedef struct { uint8_t code, bits; uint16_t lanes; } dl_dtype_t; /* DLDataType */

typedef struct {                                     /* DLTensor                                             */
    void *data;
    dl_device_t device;
    int32_t dims;
    dl_dtype_t dtype;
    int64_t *shape, *strides;                        /* (dims,) each, in elements; NULL only without dimensions */
    uint64_t byte_offset;                            /* from data to the first element                       */
} dl_tensor_t;

typedef struct dl_owned {                            /* DLManagedTensorVersioned                             */
    dl_version_t version;
    void *context;                                   /* not used here                                        */
    void (*free)(struct dl_owned *);                 /* called when nobody needs the memory any more         */
    uint64_t flags;                                  /* 0: it may be written                                 */
    dl_tensor_t tensor;
} dl_owned_t;

typedef struct dl_header {                           /* DLPackExchangeAPIHeader                              */
    dl_version_t version;
    const struct dl_header *previous;                /* a table of an older version, or NULL                 */
} dl_header_t;

typedef struct {                                     /* DLPackExchangeAPI                                    */
    dl_header_t header;
    void (*allocate)(void), (*own)(void);            /* not used here, hence without arguments               */
    /* managed_tensor_to_py_object_no_sync: a new tensor on this memory, which it then owns; -1 as below. */
    int (*give)(dl_owned_t *memory, void **object);
    /* dltensor_from_py_object_no_sync: what it points to is the tensor's own; -1 with an error set if it cannot. */
    int (*view)(void *object, dl_tensor_t *out);
    void (*stream)(void);
} dl_exchange_t;
