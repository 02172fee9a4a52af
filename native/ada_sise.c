/* Runs explain.onnx over the C API of ONNX Runtime. */

#include "ada_sise.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#ifdef ADA_SISE_LINKED /* with an ONNX Runtime that was installed with its header */
#include <onnxruntime_c_api.h>
#else
#include <dlfcn.h>

#include "ort_abi.h"
#endif

#ifndef ADA_SISE_ONNXRUNTIME
#define ADA_SISE_ONNXRUNTIME "libonnxruntime.so.1"
#endif
#define OLDEST_API 26 /* of ONNX Runtime 1.26, the first with every kernel that the graphs call for */
#define LARGEST (1 << 24) /* sizes beyond are no network's */
#define MOST_THREADS 1024
#define EXPECTED_MODEL "expected a whole bundle or single file, as python -m engine.export writes it"

enum { HEATMAP, TARGET_INDEX, CLASS_SCORE, LOGITS, SELECTED, SCORED, OUTPUTS };
enum { IMAGE, TARGET, MAX_MASKS, INPUTS };

static const char *const INPUT_NAMES[INPUTS] = {"image", "target", "max_masks"};
static const char *const OUTPUT_NAMES[OUTPUTS] = {"heatmap", "target_index", "class_score",
                                                  "logits",  "selected",     "scored"};

struct ada_sise {
    pthread_mutex_t lock; /* of message */
    char message[ADA_SISE_MESSAGE_BYTES];
    const OrtApi *ort; /* NULL until it was found; all else of ONNX Runtime follows */
    OrtEnv *env;
    OrtMemoryInfo *memory;
    OrtSession *session; /* NULL if the model could not be opened */
    ada_sise_info info;
    char *labels; /* one after the other, each with its 0 */
    const char **label;
};

typedef const OrtApiBase *(*ApiBase)(void);

typedef struct brief {
    char text[192];
} brief;

/* Returns a path or another's text as messages show it: a long one without its middle, so that the rest has its place. */
static brief shortened(const char *text) {
    brief shown;
    size_t length = strlen(text), head = sizeof shown.text / 2 - 2;
    if (length < sizeof shown.text) {
        memcpy(shown.text, text, length + 1);
        return shown;
    }
    const char *tail = text + length - head;
    while (head > 0 && (text[head] & 0xC0) == 0x80) /* within a letter of UTF-8 */
        head--;
    while ((*tail & 0xC0) == 0x80)
        tail++;
    snprintf(shown.text, sizeof shown.text, "%.*s...%s", (int)head, text, tail);
    return shown;
}

/* Keeps the text of an error, without line breaks, and gives it to the caller as well. */
static ada_sise_code failed(ada_sise *handle, ada_sise_result *result, ada_sise_code code, const char *format, ...) {
    char message[ADA_SISE_MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    for (char *c = message; *c; c++)
        if (*c == '\n' || *c == '\r')
            *c = ' ';
    if (result)
        memcpy(result->message, message, sizeof message);
    if (!handle)
        return code;
    pthread_mutex_lock(&handle->lock);
    memcpy(handle->message, message, sizeof message);
    pthread_mutex_unlock(&handle->lock);
    return code;
}

/* The same for an error of ONNX Runtime, which is released. Only its text tells a lack of memory. */
static ada_sise_code ort_failed(ada_sise *handle, ada_sise_result *result, ada_sise_code code, const char *subject,
                                const char *remedy, OrtStatus *status) {
    const char *text = handle->ort->GetErrorMessage(status);
    if (strstr(text, "bad_alloc") || strstr(text, "Failed to allocate memory")) {
        code = failed(handle, result, ADA_SISE_MEMORY, "%s: there is not enough memory; use a smaller image or model",
                      shortened(subject).text);
    } else {
        brief told = shortened(text);
        for (size_t end = strlen(told.text); end > 0 && strchr(". \n", told.text[end - 1]); end--)
            told.text[end - 1] = '\0';
        code = failed(handle, result, code, "%s: %s%s", shortened(subject).text, told.text, remedy);
    }
    handle->ort->ReleaseStatus(status);
    return code;
}

static double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

/* Finds ONNX Runtime. It stays loaded when the handle is closed: its threads may not have ended yet. */
static ada_sise_code find_runtime(ada_sise *handle, const ada_sise_options *options) {
    ApiBase api_base = NULL;
#ifdef ADA_SISE_LINKED
    if (options->onnxruntime)
        return failed(handle, NULL, ADA_SISE_ARGUMENT,
                      "onnxruntime is %s; this library is linked to an ONNX Runtime, so expected NULL",
                      shortened(options->onnxruntime).text);
    api_base = OrtGetApiBase;
#else
    const char *path = options->onnxruntime ? options->onnxruntime : ADA_SISE_ONNXRUNTIME;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!library)
        return failed(handle, NULL, ADA_SISE_RUNTIME,
                      "ONNX Runtime cannot be loaded: %s; install it, or name its library in options",
                      shortened(dlerror()).text);
    void *symbol = dlsym(library, "OrtGetApiBase");
    dlclose(library); /* it stays, by RTLD_NODELETE */
    if (!symbol)
        return failed(handle, NULL, ADA_SISE_RUNTIME, "%s: is no ONNX Runtime; expected its libonnxruntime.so",
                      shortened(path).text);
    memcpy(&api_base, &symbol, sizeof api_base);
#endif
    handle->ort = api_base()->GetApi(OLDEST_API);
    if (!handle->ort)
        return failed(handle, NULL, ADA_SISE_RUNTIME, "ONNX Runtime %s is too old; expected 1.%d or newer",
                      api_base()->GetVersionString(), OLDEST_API);
    return ADA_SISE_OK;
}

/* Asks for the CUDA provider, in float32 proper and with the same algorithms at every start, as the engine does. A build
 * for CPUs refuses. */
static ada_sise_code use_cuda(ada_sise *handle, OrtSessionOptions *session_options, int device) {
    const OrtApi *ort = handle->ort;
    OrtCUDAProviderOptionsV2 *cuda = NULL;
    char number[16];
    snprintf(number, sizeof number, "%d", device);
    const char *const keys[] = {"device_id", "use_tf32", "cudnn_conv_algo_search"};
    const char *const values[] = {number, "0", "HEURISTIC"};
    OrtStatus *status = ort->CreateCUDAProviderOptions(&cuda);
    if (!status)
        status = ort->UpdateCUDAProviderOptions(cuda, keys, values, sizeof keys / sizeof *keys);
    if (!status)
        status = ort->SessionOptionsAppendExecutionProvider_CUDA_V2(session_options, cuda);
    if (cuda)
        ort->ReleaseCUDAProviderOptions(cuda);
    return status ? ort_failed(handle, NULL, ADA_SISE_RUNTIME, "the CUDA provider",
                               "; use an ONNX Runtime that was built for CUDA, or set use_cuda to 0", status)
                  : ADA_SISE_OK;
}

static ada_sise_code create_session(ada_sise *handle, const char *file, const ada_sise_options *options) {
    const OrtApi *ort = handle->ort;
    OrtSessionOptions *session_options = NULL;
    OrtStatus *status = ort->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "ada_sise", &handle->env);
    if (!status)
        status = ort->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &handle->memory);
    if (!status)
        status = ort->CreateSessionOptions(&session_options);
    if (!status)
        status = ort->SetSessionLogSeverityLevel(session_options, ORT_LOGGING_LEVEL_FATAL); /* what fails is returned */
    if (!status)
        status = ort->SetIntraOpNumThreads(session_options, options->threads);
    if (!status)
        status = ort->AddSessionConfigEntry(session_options, "session.intra_op.allow_spinning", "0");
    ada_sise_code code = status ? ort_failed(handle, NULL, ADA_SISE_RUNTIME, "ONNX Runtime", "", status) : ADA_SISE_OK;
    if (!code && options->use_cuda)
        code = use_cuda(handle, session_options, options->cuda_device);
    if (!code) {
        status = ort->CreateSession(handle->env, file, session_options, &handle->session);
        if (status)
            code = ort_failed(handle, NULL, ADA_SISE_FILE, file, "; " EXPECTED_MODEL, status);
    }
    if (session_options)
        ort->ReleaseSessionOptions(session_options);
    return code;
}

/* Reads the type and sizes of an input or output: at most 3 axes are kept, an open one is -1. */
static OrtStatus *describe(const OrtApi *ort, const OrtSession *session, int is_input, size_t index,
                           ONNXTensorElementDataType *type, size_t *axes, int64_t sizes[4]) {
    OrtTypeInfo *about = NULL;
    const OrtTensorTypeAndShapeInfo *tensor = NULL;
    OrtStatus *status = is_input ? ort->SessionGetInputTypeInfo(session, index, &about)
                                 : ort->SessionGetOutputTypeInfo(session, index, &about);
    if (!status)
        status = ort->CastTypeInfoToTensorInfo(about, &tensor);
    *axes = 0;
    if (!status && tensor) {
        status = ort->GetTensorElementType(tensor, type);
        if (!status)
            status = ort->GetDimensionsCount(tensor, axes);
        if (!status && *axes <= 4)
            status = ort->GetDimensions(tensor, sizes, *axes);
    }
    if (about)
        ort->ReleaseTypeInfo(about);
    return status;
}

/* Whether the session's inputs, or outputs, have these names. */
static OrtStatus *compare_names(const OrtApi *ort, const OrtSession *session, int is_input, const char *const *names,
                                size_t count, int *same) {
    OrtAllocator *allocator = NULL;
    size_t found = 0;
    OrtStatus *status = is_input ? ort->SessionGetInputCount(session, &found)
                                 : ort->SessionGetOutputCount(session, &found);
    if (!status)
        status = ort->GetAllocatorWithDefaultOptions(&allocator);
    *same = found == count;
    for (size_t index = 0; !status && *same && index < count; index++) {
        char *name = NULL;
        status = is_input ? ort->SessionGetInputName(session, index, allocator, &name)
                          : ort->SessionGetOutputName(session, index, allocator, &name);
        if (!status) {
            *same = strcmp(name, names[index]) == 0;
            status = ort->AllocatorFree(allocator, name);
        }
    }
    return status;
}

/* Checks that the model is explain.onnx, and keeps its sizes. */
static ada_sise_code read_sizes(ada_sise *handle, const char *file) {
    const OrtApi *ort = handle->ort;
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    int64_t image[4] = {0}, heatmap[4] = {0}, logits[4] = {0}, selected[4] = {0};
    size_t image_axes = 0, heatmap_axes = 0, logits_axes = 0, selected_axes = 0;
    int inputs = 0, outputs = 0;
    ONNXTensorElementDataType kinds[3] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};
    OrtStatus *status = compare_names(ort, handle->session, 1, INPUT_NAMES, INPUTS, &inputs);
    if (!status)
        status = compare_names(ort, handle->session, 0, OUTPUT_NAMES, OUTPUTS, &outputs);
    if (!status && inputs && outputs) {
        status = describe(ort, handle->session, 1, IMAGE, &type, &image_axes, image);
        if (!status)
            status = describe(ort, handle->session, 0, HEATMAP, &kinds[0], &heatmap_axes, heatmap);
        if (!status)
            status = describe(ort, handle->session, 0, LOGITS, &kinds[1], &logits_axes, logits);
        if (!status)
            status = describe(ort, handle->session, 0, SELECTED, &kinds[2], &selected_axes, selected);
    }
    if (status)
        return ort_failed(handle, NULL, ADA_SISE_FILE, file, "", status);
    int photos = type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    int sound = inputs && outputs && image_axes == (photos ? 3u : 4u) && heatmap_axes == 2 && logits_axes == 2 &&
                selected_axes == 1 && kinds[0] == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT &&
                kinds[1] == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT && kinds[2] == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 &&
                heatmap[0] > 0 && heatmap[1] > 0 && heatmap[0] <= LARGEST / heatmap[1] && logits[1] > 0 &&
                logits[1] <= LARGEST && selected[0] > 0;
    sound = sound && (photos || (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT && image[0] == 1 && image[1] > 0 &&
                                 image[1] <= 3 && image[2] == heatmap[0] && image[3] == heatmap[1]));
    if (!sound)
        return failed(handle, NULL, ADA_SISE_FILE, "%s: is no explain.onnx; " EXPECTED_MODEL, shortened(file).text);
    if (selected[0] > ADA_SISE_MOST_LAYERS)
        return failed(handle, NULL, ADA_SISE_FILE, "%s: has %lld feature layers; expected at most %d",
                      shortened(file).text, (long long)selected[0], ADA_SISE_MOST_LAYERS);
    handle->info = (ada_sise_info){.takes_photos = photos,
                                   .channels = photos ? 3 : image[1],
                                   .height = heatmap[0],
                                   .width = heatmap[1],
                                   .classes = logits[1],
                                   .layers = selected[0]};
    return ADA_SISE_OK;
}

/* Keeps the labels, which are lines in the model's metadata, if it has one for each class. */
static ada_sise_code read_labels(ada_sise *handle, const char *file) {
    const OrtApi *ort = handle->ort;
    OrtModelMetadata *metadata = NULL;
    OrtAllocator *allocator = NULL;
    char *text = NULL;
    ada_sise_code code = ADA_SISE_OK;
    OrtStatus *status = ort->SessionGetModelMetadata(handle->session, &metadata);
    if (!status)
        status = ort->GetAllocatorWithDefaultOptions(&allocator);
    if (!status)
        status = ort->ModelMetadataLookupCustomMetadataMap(metadata, allocator, "labels", &text);
    if (!status && text) {
        size_t length = strlen(text), classes = (size_t)handle->info.classes, count = 0;
        handle->labels = malloc(length + 1);
        handle->label = calloc(classes, sizeof *handle->label);
        if (!handle->labels || !handle->label) {
            code = failed(handle, NULL, ADA_SISE_MEMORY, "%s: there is no memory for its labels",
                          shortened(file).text);
        } else {
            memcpy(handle->labels, text, length + 1);
            for (char *start = handle->labels; start && count < classes; count++) {
                char *end = strchr(start, '\n');
                handle->label[count] = start;
                if (end)
                    *end++ = '\0';
                start = end;
            }
        }
    }
    if (text)
        status = status ? status : ort->AllocatorFree(allocator, text);
    if (metadata)
        ort->ReleaseModelMetadata(metadata);
    return status ? ort_failed(handle, NULL, ADA_SISE_FILE, file, "", status) : code;
}

/* Returns the file of a bundle, or the path itself; NULL if there is no memory. */
static char *model_file(const char *path) {
    struct stat about;
    const char *inside = stat(path, &about) == 0 && S_ISDIR(about.st_mode) ? "/explain.onnx" : "";
    size_t bytes = strlen(path) + strlen(inside) + 1;
    char *file = malloc(bytes);
    if (file)
        snprintf(file, bytes, "%s%s", path, inside);
    return file;
}

/* Checks that there is a file: ONNX Runtime would wait for a pipe's content. */
static ada_sise_code expect_file(ada_sise *handle, const char *file) {
    struct stat about;
    if (stat(file, &about) != 0)
        return failed(handle, NULL, ADA_SISE_FILE, "%s: cannot be opened: %s; " EXPECTED_MODEL, shortened(file).text,
                      strerror(errno));
    if (!S_ISREG(about.st_mode))
        return failed(handle, NULL, ADA_SISE_FILE, "%s: is no regular file; " EXPECTED_MODEL, shortened(file).text);
    return ADA_SISE_OK;
}

ada_sise_code ada_sise_open(const char *path, const ada_sise_options *options, ada_sise **handle) {
    static const ada_sise_options defaults = {0};
    if (!handle)
        return ADA_SISE_ARGUMENT;
    *handle = calloc(1, sizeof **handle);
    if (!*handle)
        return ADA_SISE_MEMORY;
    ada_sise *opened = *handle;
    if (pthread_mutex_init(&opened->lock, NULL) != 0) {
        free(opened);
        *handle = NULL;
        return ADA_SISE_MEMORY;
    }
    if (!path)
        return failed(opened, NULL, ADA_SISE_ARGUMENT, "path is NULL; expected that of a bundle or a single file");
    options = options ? options : &defaults;
    if (options->threads < 0 || options->threads > MOST_THREADS)
        return failed(opened, NULL, ADA_SISE_ARGUMENT, "threads is %d; expected 0 for one per core, or 1 to %d",
                      options->threads, MOST_THREADS);
    char *file = model_file(path);
    if (!file)
        return failed(opened, NULL, ADA_SISE_MEMORY, "%s: there is no memory for its name", shortened(path).text);
    ada_sise_code code = find_runtime(opened, options);
    if (!code)
        code = expect_file(opened, file);
    if (!code)
        code = create_session(opened, file, options);
    if (!code)
        code = read_sizes(opened, file);
    if (!code)
        code = read_labels(opened, file);
    if (code && opened->session) {
        opened->ort->ReleaseSession(opened->session);
        opened->session = NULL;
    }
    free(file);
    return code;
}

void ada_sise_close(ada_sise *handle) {
    if (!handle)
        return;
    if (handle->session)
        handle->ort->ReleaseSession(handle->session);
    if (handle->memory)
        handle->ort->ReleaseMemoryInfo(handle->memory);
    if (handle->env)
        handle->ort->ReleaseEnv(handle->env);
    free(handle->labels);
    free(handle->label);
    pthread_mutex_destroy(&handle->lock);
    free(handle);
}

static ada_sise_code expect_opened(ada_sise *handle, ada_sise_result *result) {
    if (!handle)
        return failed(handle, result, ADA_SISE_ARGUMENT, "handle is NULL; expected that of an opened model");
    if (!handle->session)
        return failed(handle, result, ADA_SISE_ARGUMENT, "the model was not opened; expected a handle that was");
    return ADA_SISE_OK;
}

ada_sise_code ada_sise_get_info(const ada_sise *handle, ada_sise_info *info) {
    ada_sise *asked = (ada_sise *)handle; /* no handle is a const object, and only its error changes */
    ada_sise_code code = expect_opened(asked, NULL);
    if (!code && !info)
        code = failed(asked, NULL, ADA_SISE_ARGUMENT, "info is NULL; expected a place for it");
    if (!code)
        *info = handle->info;
    return code;
}

const char *ada_sise_label(const ada_sise *handle, int64_t target) {
    if (!handle || !handle->session || !handle->label || target < 0 || target >= handle->info.classes)
        return NULL;
    return handle->label[target];
}

void ada_sise_error(const ada_sise *handle, char *text, size_t size) {
    if (!text || size == 0)
        return;
    text[0] = '\0';
    if (!handle)
        return;
    pthread_mutex_t *lock = (pthread_mutex_t *)&handle->lock; /* all that a reader changes */
    pthread_mutex_lock(lock);
    snprintf(text, size, "%s", handle->message);
    pthread_mutex_unlock(lock);
}

static int all_finite(const float *values, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (!isfinite(values[i]))
            return 0;
    return 1;
}

/* Copies what the caller asked for out of the outputs. */
static ada_sise_code copy_results(ada_sise *handle, OrtValue *const outputs[OUTPUTS], float *heatmap,
                                  ada_sise_result *result) {
    void *data[OUTPUTS] = {NULL};
    for (int i = 0; i < OUTPUTS; i++) {
        OrtStatus *status = handle->ort->GetTensorMutableData(outputs[i], &data[i]);
        if (status)
            return ort_failed(handle, result, ADA_SISE_RUNTIME, OUTPUT_NAMES[i], "", status);
    }
    const ada_sise_info *info = &handle->info;
    size_t pixels = (size_t)(info->height * info->width), layers = (size_t)info->layers;
    if (!all_finite(data[LOGITS], (size_t)info->classes) || !all_finite(data[HEATMAP], pixels))
        return failed(handle, result, ADA_SISE_IMAGE,
                      "the network computes NaN or infinity for this image; expected finite logits and gradients: check "
                      "the image's range");
    memcpy(heatmap, data[HEATMAP], pixels * sizeof *heatmap);
    memcpy(&result->target, data[TARGET_INDEX], sizeof result->target);
    memcpy(&result->class_score, data[CLASS_SCORE], sizeof result->class_score);
    memcpy(result->selected, data[SELECTED], layers * sizeof *result->selected);
    memcpy(result->scored, data[SCORED], layers * sizeof *result->scored);
    return ADA_SISE_OK;
}

static ada_sise_code explain(ada_sise *handle, void *image, size_t bytes, const int64_t *sizes, size_t axes,
                             ONNXTensorElementDataType type, int64_t target, int64_t max_masks, float *heatmap,
                             ada_sise_result *result) {
    const OrtApi *ort = handle->ort;
    const int64_t one = 1;
    OrtValue *inputs[INPUTS] = {NULL}, *outputs[OUTPUTS] = {NULL};
    const ONNXTensorElementDataType whole = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    double began = now_ms();
    OrtStatus *status =
        ort->CreateTensorWithDataAsOrtValue(handle->memory, image, bytes, sizes, axes, type, &inputs[IMAGE]);
    if (!status)
        status = ort->CreateTensorWithDataAsOrtValue(handle->memory, &target, sizeof target, &one, 1, whole,
                                                     &inputs[TARGET]);
    if (!status)
        status = ort->CreateTensorWithDataAsOrtValue(handle->memory, &max_masks, sizeof max_masks, &one, 1, whole,
                                                     &inputs[MAX_MASKS]);
    if (!status)
        status = ort->Run(handle->session, NULL, INPUT_NAMES, (const OrtValue *const *)inputs, INPUTS, OUTPUT_NAMES,
                          OUTPUTS, outputs);
    ada_sise_code code = status ? ort_failed(handle, result, ADA_SISE_RUNTIME, "ONNX Runtime", "", status)
                                : copy_results(handle, outputs, heatmap, result);
    result->milliseconds = now_ms() - began;
    for (int i = 0; i < INPUTS; i++)
        if (inputs[i])
            ort->ReleaseValue(inputs[i]);
    for (int i = 0; i < OUTPUTS; i++)
        if (outputs[i])
            ort->ReleaseValue(outputs[i]);
    return code;
}

/* Checks what both kinds of images have in common. */
static ada_sise_code expect_arguments(ada_sise *handle, const void *image, int photo, int64_t target, int64_t max_masks,
                                      const float *heatmap, size_t heatmap_count, ada_sise_result *result) {
    ada_sise_code code = expect_opened(handle, result);
    if (code)
        return code;
    if (!image || !heatmap)
        return failed(handle, result, ADA_SISE_ARGUMENT, "%s is NULL; expected an array", image ? "heatmap" : "image");
    if (photo != handle->info.takes_photos)
        return failed(handle, result, ADA_SISE_ARGUMENT,
                      photo ? "the model takes prepared images: call ada_sise_explain, or export it again with "
                              "--embed-preprocess"
                            : "the model takes photos: call ada_sise_explain_photo");
    size_t pixels = (size_t)(handle->info.height * handle->info.width);
    if (heatmap_count != pixels)
        return failed(handle, result, ADA_SISE_ARGUMENT, "heatmap has %zu numbers; expected %zu", heatmap_count, pixels);
    if (target < ADA_SISE_TOP_CLASS || target >= handle->info.classes)
        return failed(handle, result, ADA_SISE_ARGUMENT, "target is %lld; expected -1 for the top-1 class, or 0 to %lld",
                      (long long)target, (long long)handle->info.classes - 1);
    if (max_masks < 0)
        return failed(handle, result, ADA_SISE_ARGUMENT, "max_masks is %lld; expected 0 for all, or more",
                      (long long)max_masks);
    return ADA_SISE_OK;
}

ada_sise_code ada_sise_explain(ada_sise *handle, const float *image, size_t image_count, int64_t target,
                               int64_t max_masks, float *heatmap, size_t heatmap_count, ada_sise_result *result) {
    ada_sise_result own;
    result = result ? result : &own;
    memset(result, 0, sizeof *result);
    ada_sise_code code = expect_arguments(handle, image, 0, target, max_masks, heatmap, heatmap_count, result);
    if (code)
        return code;
    const ada_sise_info *info = &handle->info;
    const int64_t sizes[4] = {1, info->channels, info->height, info->width};
    size_t count = (size_t)(info->channels * info->height * info->width);
    if (image_count != count)
        return failed(handle, result, ADA_SISE_ARGUMENT, "image has %zu numbers; expected %zu", image_count, count);
    if (!all_finite(image, count))
        return failed(handle, result, ADA_SISE_IMAGE, "the image holds NaN or infinity; expected finite numbers");
    return explain(handle, (void *)image, count * sizeof *image, sizes, 4, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, target,
                   max_masks, heatmap, result);
}

ada_sise_code ada_sise_explain_photo(ada_sise *handle, const uint8_t *photo, int64_t height, int64_t width,
                                     int64_t target, int64_t max_masks, float *heatmap, size_t heatmap_count,
                                     ada_sise_result *result) {
    ada_sise_result own;
    result = result ? result : &own;
    memset(result, 0, sizeof *result);
    ada_sise_code code = expect_arguments(handle, photo, 1, target, max_masks, heatmap, heatmap_count, result);
    if (code)
        return code;
    if (height < 1 || width < 1 || height > ADA_SISE_MOST_PIXELS / width)
        return failed(handle, result, ADA_SISE_ARGUMENT,
                      "the photo is %lld pixels high and %lld wide; expected 1 or more, and %d pixels in all at the most",
                      (long long)height, (long long)width, ADA_SISE_MOST_PIXELS);
    const int64_t sizes[3] = {height, width, 3};
    return explain(handle, (void *)photo, (size_t)height * (size_t)width * 3, sizes, 3,
                   ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, target, max_masks, heatmap, result);
}
