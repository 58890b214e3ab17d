// CUDA's runtime without a device: memory is the host's, kernels do nothing, and calls that CUDA forbids while a graph is
// recorded (mode global) end with 900. So ONNX Runtime's own host code runs as it is: which nodes it places where, shapes,
// its arena, IO bindings, recorded graphs. There are no numbers. Two devices are offered.
//
// STUB_CUDA_SLOW_MS  how long a recording lasts, so that other threads come in between
// STUB_CUDA_ARENA    print what is allocated
#include <driver_types.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, NO_MEMORY = 2, FORBIDDEN = 900, BLOCK = 512, ZEROED = 1 << 26 };
static void *volatile recording_stream = 0;
static volatile int recording = 0;
static __thread int device = 0;

static int forbidden(const char *name) {
  if (recording) fprintf(stderr, "stub CUDA: %s while a graph is recorded\n", name);
  return recording;
}
#define REFUSE_WHILE_RECORDING \
  if (forbidden(__func__)) return FORBIDDEN

int cudaGetDeviceCount(int *count) { return *count = 2, OK; }
int cudaGetDevice(int *number) { return *number = device, OK; }
int cudaSetDevice(int number) { return device = number, OK; }
int cudaDriverGetVersion(int *version) { return *version = 13000, OK; }
int cudaRuntimeGetVersion(int *version) { return *version = 13000, OK; }

// An H100: compute capability 9.0, 132 multiprocessors, 80 GiB.
int cudaGetDeviceProperties(struct cudaDeviceProp *found, int number) {
  memset(found, 0, sizeof *found);
  strcpy(found->name, "stub H100");
  found->major = 9;
  found->totalGlobalMem = 80ull << 30;
  found->sharedMemPerBlock = 49152;
  found->sharedMemPerBlockOptin = 232448;
  found->sharedMemPerMultiprocessor = 233472;
  found->regsPerBlock = found->regsPerMultiprocessor = 65536;
  found->warpSize = 32;
  found->maxThreadsPerBlock = 1024;
  found->maxThreadsPerMultiProcessor = 2048;
  found->multiProcessorCount = 132;
  found->maxGridSize[0] = 2147483647;
  found->maxGridSize[1] = found->maxGridSize[2] = 65535;
  found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024;
  found->maxThreadsDim[2] = 64;
  found->l2CacheSize = 50 << 20;
  return OK;
}

int cudaDeviceGetAttribute(int *value, int attribute, int number) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 233472; break;
    default: *value = 0;
  }
  return OK;
}

int cudaMemGetInfo(size_t *left, size_t *total) { return *left = 79ull << 30, *total = 80ull << 30, OK; }

static int allocate(void **place, size_t size) {
  *place = 0;
  if (posix_memalign(place, BLOCK, size ? size : 1)) return NO_MEMORY;
  if (size < ZEROED) memset(*place, 0, size);
  return OK;
}
int cudaMalloc(void **place, size_t size) {
  REFUSE_WHILE_RECORDING;
  if (getenv("STUB_CUDA_ARENA")) fprintf(stderr, "stub CUDA: allocated %zu\n", size);
  return allocate(place, size);
}
int cudaMallocHost(void **place, size_t size) {
  REFUSE_WHILE_RECORDING;
  return allocate(place, size);
}
int cudaHostAlloc(void **place, size_t size, unsigned flags) {
  REFUSE_WHILE_RECORDING;
  return allocate(place, size);
}
int cudaMallocFromPoolAsync(void **place, size_t size, void *pool, void *stream) { return allocate(place, size); }
int cudaFree(void *place) {
  REFUSE_WHILE_RECORDING;
  return free(place), OK;
}
int cudaFreeHost(void *place) {
  REFUSE_WHILE_RECORDING;
  return free(place), OK;
}
int cudaFreeAsync(void *place, void *stream) { return free(place), OK; }

int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
  REFUSE_WHILE_RECORDING;
  return memmove(to, from, size), OK;
}
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
  if (!(recording && stream == recording_stream)) memmove(to, from, size);
  return OK;
}
int cudaMemcpy2DAsync(void *to, size_t to_step, const void *from, size_t from_step, size_t width, size_t height, int kind,
                      void *stream) {
  for (size_t row = 0; row < height; row++)
    memmove((char *)to + row * to_step, (const char *)from + row * from_step, width);
  return OK;
}
int cudaMemset(void *place, int value, size_t size) {
  REFUSE_WHILE_RECORDING;
  return memset(place, value, size), OK;
}
int cudaMemsetAsync(void *place, int value, size_t size, void *stream) { return memset(place, value, size), OK; }

static int make(void **handle) { return (*handle = malloc(8)) ? OK : NO_MEMORY; }
int cudaStreamCreate(void **stream) { return make(stream); }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { return make(stream); }
int cudaStreamDestroy(void *stream) { return OK; }
int cudaStreamSynchronize(void *stream) {
  REFUSE_WHILE_RECORDING;
  return OK;
}
int cudaDeviceSynchronize(void) {
  REFUSE_WHILE_RECORDING;
  return OK;
}
int cudaEventCreate(void **event) { return make(event); }
int cudaEventCreateWithFlags(void **event, unsigned flags) { return make(event); }
int cudaEventElapsedTime(float *ms, void *from, void *to) { return *ms = 0, OK; }

int cudaStreamBeginCapture(void *stream, int mode) {
  recording_stream = stream;
  recording = 1;
  const char *slow_ms = getenv("STUB_CUDA_SLOW_MS");
  if (slow_ms) usleep(atoi(slow_ms) * 1000);
  return OK;
}
int cudaStreamEndCapture(void *stream, void **graph) { return recording = 0, make(graph); }
int cudaStreamIsCapturing(void *stream, int *status) {
  return *status = recording && stream == recording_stream, OK;
}
int cudaGraphInstantiate(void **made, void *graph, unsigned long long flags) { return make(made); }
int cudaGraphLaunch(void *graph, void *stream) { return OK; }
int cudaGraphDestroy(void *graph) { return OK; }
int cudaGraphExecDestroy(void *graph) { return OK; }

const char *cudaGetErrorName(int error) { return "stub error"; }
const char *cudaGetErrorString(int error) {
  return error == FORBIDDEN ? "operation not permitted when stream is capturing" : "stub error";
}
int cudaGetLastError(void) { return OK; }
int cudaPeekAtLastError(void) { return OK; }

int cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *function) {
  memset(found, 0, sizeof *found);
  found->maxThreadsPerBlock = 1024;
  found->maxDynamicSharedSizeBytes = 232448;
  found->binaryVersion = found->ptxVersion = 90;
  return OK;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function, int threads, size_t shared,
                                                           unsigned flags) {
  return *blocks = 2, OK;
}
int cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *place) {
  memset(found, 0, sizeof *found);
  found->type = cudaMemoryTypeDevice;
  found->devicePointer = (void *)place;
  return OK;
}

void **__cudaRegisterFatBinary(void *binary) {
  static void *handle[4];
  return handle;
}
unsigned __cudaPushCallConfiguration(void) { return 0; }
int __cudaPopCallConfiguration(void *grid, void *block, size_t *shared, void **stream) { return OK; }
