/* A stand-in for the CUDA runtime, to run the TensorRT adapter's own code where there is no GPU.
 *
 * "Device" memory is ordinary memory, filled with 0xCD at first. A stream is a queue that nothing empties but
 * cudaStreamSynchronize: whoever reads a result without waiting reads old bytes. While a stream captures, work goes
 * into a graph instead. stand_in_enqueue puts a host function in the queue; the tests use it for TensorRT's own work.
 */
#include <stdlib.h>
#include <string.h>

#define LIMIT 256
typedef void (*work_fn)(void);
typedef struct { void *to; const void *from; size_t size; work_fn work; } item;
typedef struct { item items[LIMIT]; int count; } list;
typedef struct { list queue; list *graph; } stream;

static long live = 0;
static int major_version = 9, failing = 0;

long stand_in_live(void) { return live; }
void stand_in_set_compute_capability(int major) { major_version = major; }
void stand_in_fail_next_allocation(void) { failing = 1; }

static void *allocate(size_t size) {
    if (failing) { failing = 0; return NULL; }
    void *memory = malloc(size);
    if (memory) { memset(memory, 0xCD, size); live++; }
    return memory;
}
static int release(void *memory) { if (memory) { free(memory); live--; } return 0; }

static int put(stream *s, item one) {
    list *target = s->graph ? s->graph : &s->queue;
    if (target->count == LIMIT) return 2;
    target->items[target->count++] = one;
    return 0;
}

const char *cudaGetErrorName(int code) { return code == 2 ? "cudaErrorMemoryAllocation" : "cudaErrorUnknown"; }
const char *cudaGetErrorString(int code) { return code == 2 ? "out of memory" : "unknown error"; }
int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 12090; return 0; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == 75 ? major_version : 0;
    return attribute == 75 || attribute == 76 ? 0 : 1;
}
int cudaGetDeviceProperties(void *properties, int device) {
    (void)device;
    strcpy(properties, "Stand-in GPU");
    return 0;
}
int cudaMalloc(void **pointer, size_t size) { *pointer = allocate(size); return *pointer ? 0 : 2; }
int cudaFree(void *pointer) { return release(pointer); }
int cudaHostAlloc(void **pointer, size_t size, unsigned flags) { (void)flags; return cudaMalloc(pointer, size); }
int cudaFreeHost(void *pointer) { return release(pointer); }
int cudaStreamCreate(void **pointer) {
    *pointer = calloc(1, sizeof(stream));
    live++;
    return 0;
}
int cudaStreamDestroy(void *pointer) { return release(pointer); }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *s) {
    if (kind != 1 && kind != 2) return 1;
    return put(s, (item){to, from, size, NULL});
}
int stand_in_enqueue(void *s, work_fn work) { return put(s, (item){NULL, NULL, 0, work}); }
int cudaStreamSynchronize(void *pointer) {
    stream *s = pointer;
    if (s->graph) return 1; /* not allowed while capturing, as in CUDA */
    for (int i = 0; i < s->queue.count; i++) {
        item one = s->queue.items[i];
        if (one.work) one.work();
        else memcpy(one.to, one.from, one.size);
    }
    s->queue.count = 0;
    return 0;
}
int cudaStreamBeginCapture(void *pointer, int mode) {
    stream *s = pointer;
    (void)mode;
    if (s->graph) return 1;
    s->graph = calloc(1, sizeof(list));
    live++;
    return 0;
}
int cudaStreamEndCapture(void *pointer, void **graph) {
    stream *s = pointer;
    *graph = s->graph;
    s->graph = NULL;
    return *graph ? 0 : 1;
}
int cudaGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
    (void)flags;
    *executable = allocate(sizeof(list));
    if (!*executable) return 2;
    memcpy(*executable, graph, sizeof(list));
    return 0;
}
int cudaGraphLaunch(void *executable, void *pointer) {
    list *graph = executable;
    for (int i = 0; i < graph->count; i++)
        if (put(pointer, graph->items[i])) return 2;
    return 0;
}
int cudaGraphExecDestroy(void *executable) { return release(executable); }
int cudaGraphDestroy(void *graph) { return release(graph); }
int cudaEventCreate(void **event) { *event = allocate(1); return *event ? 0 : 2; }
int cudaEventDestroy(void *event) { return release(event); }
int cudaEventRecord(void *event, void *s) { (void)event; (void)s; return 0; }
int cudaEventSynchronize(void *event) { (void)event; return 0; }
int cudaEventElapsedTime(float *ms, void *first, void *last) {
    (void)first; (void)last;
    *ms = 1.5f;
    return 0;
}
