/* Ada-SISE explanations of CNN classifiers, for C and C++ hosts: why did the model answer as it did?
 *
 * The library runs explain.onnx, which `python -m engine.export` writes, in ONNX Runtime. It has no global state. Any
 * number of threads may use one handle at the same time; it is closed when none does any more. */

#ifndef ADA_SISE_H
#define ADA_SISE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define ADA_SISE_API __attribute__((visibility("default")))
#else
#define ADA_SISE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define ADA_SISE_VERSION "0.1.0"
#define ADA_SISE_TOP_CLASS (-1) /* as a target: the class of the highest logit */
#define ADA_SISE_ALL_MASKS 0    /* as max_masks: the exact method */
#define ADA_SISE_MOST_LAYERS 16
#define ADA_SISE_MOST_PIXELS (1 << 27) /* of a photo */
#define ADA_SISE_MESSAGE_BYTES 512

/* One model, opened. */
typedef struct ada_sise ada_sise;

typedef enum ada_sise_code {
    ADA_SISE_OK = 0,
    ADA_SISE_ARGUMENT = 1, /* what the caller gave makes no sense; nothing was done */
    ADA_SISE_FILE = 2,     /* the model is missing, damaged, or none that the exporter writes */
    ADA_SISE_RUNTIME = 3,  /* ONNX Runtime is missing, too old, lacks a provider, or failed */
    ADA_SISE_IMAGE = 4,    /* the image, or what the network makes of it, is not finite */
    ADA_SISE_MEMORY = 5    /* there is no more memory */
} ada_sise_code;

/* How to open a model. All zeros are the defaults. */
typedef struct ada_sise_options {
    const char *onnxruntime; /* path of libonnxruntime.so; NULL for the one that the library was built with */
    int threads;             /* that work on one explanation, at most 1024; 0 for one per core */
    int use_cuda;            /* not 0: on a GPU, which needs an ONNX Runtime that was built for CUDA */
    int cuda_device;         /* its number */
} ada_sise_options;

/* What a model takes and gives. */
typedef struct ada_sise_info {
    int takes_photos; /* uint8 [height, width, 3], red first; else float32 [channels, height, width] */
    int64_t channels; /* of the image that the model takes: 3 for photos */
    int64_t height;   /* of the network's input, and of heatmaps */
    int64_t width;
    int64_t classes;
    int64_t layers; /* from which masks are made, at most ADA_SISE_MOST_LAYERS */
} ada_sise_info;

/* What an explanation did. */
typedef struct ada_sise_result {
    int64_t target;                             /* the class that was explained */
    float class_score;                          /* its score for the image */
    int64_t selected[ADA_SISE_MOST_LAYERS];     /* feature maps of each layer that were selected */
    int64_t scored[ADA_SISE_MOST_LAYERS];       /* masks of each layer that were scored */
    double milliseconds;                        /* that it took */
    char message[ADA_SISE_MESSAGE_BYTES];       /* why it failed, or empty */
} ada_sise_result;

/* Opens a bundle (NAME.ada) or a single file (NAME.onnx). options may be NULL.
 *
 * *handle is set even if it fails, unless there is no memory: ada_sise_error says why, and it is to be closed. */
ADA_SISE_API ada_sise_code ada_sise_open(const char *path, const ada_sise_options *options, ada_sise **handle);

/* Tells what the model takes and gives. */
ADA_SISE_API ada_sise_code ada_sise_get_info(const ada_sise *handle, ada_sise_info *info);

/* Returns the name of a class, valid until the handle is closed; NULL without labels, or if there is no such class. */
ADA_SISE_API const char *ada_sise_label(const ada_sise *handle, int64_t target);

/* Explains a prepared image, float32 [channels, height, width] as the model takes it: image_count numbers.
 *
 * target: the class, or ADA_SISE_TOP_CLASS. max_masks: the most masks to score, the scores of the others are
 * estimated; or ADA_SISE_ALL_MASKS. heatmap: float32 [height, width] of the caller, heatmap_count numbers from 0 to 1,
 * written if it succeeds. result may be NULL. */
ADA_SISE_API ada_sise_code ada_sise_explain(ada_sise *handle, const float *image, size_t image_count, int64_t target,
                                            int64_t max_masks, float *heatmap, size_t heatmap_count,
                                            ada_sise_result *result);

/* The same for a photo, uint8 [height, width, 3], red first, of at most ADA_SISE_MOST_PIXELS: of a model that
 * was exported with --embed-preprocess. */
ADA_SISE_API ada_sise_code ada_sise_explain_photo(ada_sise *handle, const uint8_t *photo, int64_t height, int64_t width,
                                                  int64_t target, int64_t max_masks, float *heatmap,
                                                  size_t heatmap_count, ada_sise_result *result);

/* Writes the text of the handle's last error, of whichever thread, or "" if there was none: at most size bytes with the
 * 0 at the end. ada_sise_result has the text of a call of its own. */
ADA_SISE_API void ada_sise_error(const ada_sise *handle, char *text, size_t size);

/* Closes the handle; NULL is fine. */
ADA_SISE_API void ada_sise_close(ada_sise *handle);

#ifdef __cplusplus
}
#endif

#endif
