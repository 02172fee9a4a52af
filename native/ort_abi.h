/* The functions of ONNX Runtime's C API that this library calls, for builds without ONNX Runtime's own header.
 *
 * The API is a table of function pointers that is only ever appended to, so that a function's place never changes. The
 * names are those of onnxruntime_c_api.h; what lies between is not called. */

#ifndef ADA_SISE_ORT_ABI_H
#define ADA_SISE_ORT_ABI_H

#include <stddef.h>
#include <stdint.h>

#define ORT_API_VERSION 26

typedef struct OrtStatus OrtStatus;
typedef struct OrtEnv OrtEnv;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtValue OrtValue;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtTypeInfo OrtTypeInfo;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtModelMetadata OrtModelMetadata;
typedef struct OrtAllocator OrtAllocator;
typedef struct OrtCUDAProviderOptionsV2 OrtCUDAProviderOptionsV2;

typedef enum OrtLoggingLevel { ORT_LOGGING_LEVEL_FATAL = 4 } OrtLoggingLevel;
typedef enum OrtAllocatorType { OrtDeviceAllocator = 0 } OrtAllocatorType;
typedef enum OrtMemType { OrtMemTypeDefault = 0 } OrtMemType;
typedef enum ONNXTensorElementDataType {
    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 = 2,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7
} ONNXTensorElementDataType;

typedef void (*OrtUnused)(void);

typedef struct OrtApi {
    OrtUnused unused_0[2];
    const char *(*GetErrorMessage)(const OrtStatus *status); /* 2 */
    OrtStatus *(*CreateEnv)(OrtLoggingLevel level, const char *name, OrtEnv **env);
    OrtUnused unused_4[3];
    OrtStatus *(*CreateSession)(const OrtEnv *env, const char *path, const OrtSessionOptions *options,
                                OrtSession **session); /* 7 */
    OrtUnused unused_8;
    OrtStatus *(*Run)(OrtSession *session, const OrtRunOptions *options, const char *const *input_names,
                      const OrtValue *const *inputs, size_t input_count, const char *const *output_names,
                      size_t output_count, OrtValue **outputs); /* 9 */
    OrtStatus *(*CreateSessionOptions)(OrtSessionOptions **options);
    OrtUnused unused_11[11];
    OrtStatus *(*SetSessionLogSeverityLevel)(OrtSessionOptions *options, int level); /* 22 */
    OrtUnused unused_23;
    OrtStatus *(*SetIntraOpNumThreads)(OrtSessionOptions *options, int threads); /* 24 */
    OrtUnused unused_25[5];
    OrtStatus *(*SessionGetInputCount)(const OrtSession *session, size_t *count); /* 30 */
    OrtStatus *(*SessionGetOutputCount)(const OrtSession *session, size_t *count);
    OrtUnused unused_32;
    OrtStatus *(*SessionGetInputTypeInfo)(const OrtSession *session, size_t index, OrtTypeInfo **type); /* 33 */
    OrtStatus *(*SessionGetOutputTypeInfo)(const OrtSession *session, size_t index, OrtTypeInfo **type);
    OrtUnused unused_35;
    OrtStatus *(*SessionGetInputName)(const OrtSession *session, size_t index, OrtAllocator *allocator,
                                      char **name); /* 36 */
    OrtStatus *(*SessionGetOutputName)(const OrtSession *session, size_t index, OrtAllocator *allocator, char **name);
    OrtUnused unused_38[11];
    OrtStatus *(*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo *memory, void *data, size_t bytes,
                                                 const int64_t *sizes, size_t axes, ONNXTensorElementDataType type,
                                                 OrtValue **value); /* 49 */
    OrtUnused unused_50;
    OrtStatus *(*GetTensorMutableData)(OrtValue *value, void **data); /* 51 */
    OrtUnused unused_52[3];
    OrtStatus *(*CastTypeInfoToTensorInfo)(const OrtTypeInfo *type, const OrtTensorTypeAndShapeInfo **info); /* 55 */
    OrtUnused unused_56[4];
    OrtStatus *(*GetTensorElementType)(const OrtTensorTypeAndShapeInfo *info, ONNXTensorElementDataType *type); /* 60 */
    OrtStatus *(*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo *info, size_t *axes);
    OrtStatus *(*GetDimensions)(const OrtTensorTypeAndShapeInfo *info, int64_t *sizes, size_t axes);
    OrtUnused unused_63[6];
    OrtStatus *(*CreateCpuMemoryInfo)(OrtAllocatorType allocator, OrtMemType kind, OrtMemoryInfo **memory); /* 69 */
    OrtUnused unused_70[6];
    OrtStatus *(*AllocatorFree)(OrtAllocator *allocator, void *data); /* 76 */
    OrtUnused unused_77;
    OrtStatus *(*GetAllocatorWithDefaultOptions)(OrtAllocator **allocator); /* 78 */
    OrtUnused unused_79[13];
    void (*ReleaseEnv)(OrtEnv *env); /* 92 */
    void (*ReleaseStatus)(OrtStatus *status);
    void (*ReleaseMemoryInfo)(OrtMemoryInfo *memory);
    void (*ReleaseSession)(OrtSession *session);
    void (*ReleaseValue)(OrtValue *value);
    OrtUnused unused_97;
    void (*ReleaseTypeInfo)(OrtTypeInfo *type); /* 98 */
    OrtUnused unused_99;
    void (*ReleaseSessionOptions)(OrtSessionOptions *options); /* 100 */
    OrtUnused unused_101[10];
    OrtStatus *(*SessionGetModelMetadata)(const OrtSession *session, OrtModelMetadata **metadata); /* 111 */
    OrtUnused unused_112[4];
    OrtStatus *(*ModelMetadataLookupCustomMetadataMap)(const OrtModelMetadata *metadata, OrtAllocator *allocator,
                                                       const char *key, char **value); /* 116 */
    OrtUnused unused_117;
    void (*ReleaseModelMetadata)(OrtModelMetadata *metadata); /* 118 */
    OrtUnused unused_119[11];
    OrtStatus *(*AddSessionConfigEntry)(OrtSessionOptions *options, const char *key, const char *value); /* 130 */
    OrtUnused unused_131[73];
    OrtStatus *(*SessionOptionsAppendExecutionProvider_CUDA_V2)(OrtSessionOptions *options,
                                                                const OrtCUDAProviderOptionsV2 *cuda); /* 204 */
    OrtStatus *(*CreateCUDAProviderOptions)(OrtCUDAProviderOptionsV2 **cuda);
    OrtStatus *(*UpdateCUDAProviderOptions)(OrtCUDAProviderOptionsV2 *cuda, const char *const *keys,
                                            const char *const *values, size_t count);
    OrtUnused unused_207;
    void (*ReleaseCUDAProviderOptions)(OrtCUDAProviderOptionsV2 *cuda); /* 208 */
} OrtApi;

_Static_assert(offsetof(OrtApi, Run) == 9 * sizeof(OrtUnused), "a place in the table");
_Static_assert(offsetof(OrtApi, CreateTensorWithDataAsOrtValue) == 49 * sizeof(OrtUnused), "a place in the table");
_Static_assert(offsetof(OrtApi, ReleaseSessionOptions) == 100 * sizeof(OrtUnused), "a place in the table");
_Static_assert(offsetof(OrtApi, AddSessionConfigEntry) == 130 * sizeof(OrtUnused), "a place in the table");
_Static_assert(offsetof(OrtApi, ReleaseCUDAProviderOptions) == 208 * sizeof(OrtUnused), "a place in the table");

typedef struct OrtApiBase {
    const OrtApi *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} OrtApiBase;

#endif
