/* Good and bad use of the library, for sanitizers and valgrind:
 *
 *   exercise ONNXRUNTIME BUNDLE PHOTO_MODEL IMAGE HEATMAP OPENS THREADS CALLS BAD_FILE...
 *
 * BUNDLE takes prepared images, of which IMAGE is one, float32, and HEATMAP what it gives; PHOTO_MODEL takes photos.
 * The first three of the bad files are opened again and again. Prints what is not as expected, and returns how often
 * that was. */

#include <ada_sise.h>

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures;
static size_t values, pixels; /* of an image and of a heatmap */

#define EXPECT(condition)                                                                                              \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "line %d: not so: %s\n", __LINE__, #condition);                                            \
            failures++;                                                                                                \
        }                                                                                                              \
    } while (0)

typedef struct work {
    ada_sise *model;
    const float *image;
    const float *expected;
    int calls;
    int failures;
} work;

static float *read_floats(const char *path, size_t *count) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END) != 0) {
        perror(path);
        exit(100);
    }
    *count = (size_t)ftell(file) / sizeof(float);
    rewind(file);
    float *values = malloc(*count * sizeof *values);
    if (!values || fread(values, sizeof *values, *count, file) != *count)
        exit(100);
    fclose(file);
    return values;
}

static int says(const ada_sise *model, const char *part) {
    char text[ADA_SISE_MESSAGE_BYTES];
    ada_sise_error(model, text, sizeof text);
    if (strstr(text, part))
        return 1;
    fprintf(stderr, "message: %s\n", text);
    return 0;
}

static void use_badly(ada_sise *model, const ada_sise_options *options, const float *image, float *heatmap) {
    ada_sise_result result;
    ada_sise_info info;
    ada_sise *none = NULL;
    EXPECT(ada_sise_open("x", options, NULL) == ADA_SISE_ARGUMENT);
    EXPECT(ada_sise_open(NULL, options, &none) == ADA_SISE_ARGUMENT && says(none, "path is NULL"));
    EXPECT(ada_sise_explain(none, image, values, -1, 0, heatmap, pixels, &result) == ADA_SISE_ARGUMENT);
    EXPECT(strstr(result.message, "the model was not opened") != NULL);
    ada_sise_close(none);
    EXPECT(ada_sise_open(NULL, options, &none) == ADA_SISE_ARGUMENT && ada_sise_label(none, 0) == NULL);
    EXPECT(ada_sise_get_info(none, &info) == ADA_SISE_ARGUMENT && says(none, "the model was not opened"));
    ada_sise_close(none);
    ada_sise_close(NULL);
    ada_sise_options other = {.onnxruntime = "/none/libonnxruntime.so"};
    EXPECT(ada_sise_open(".", &other, &none) == ADA_SISE_RUNTIME && says(none, "ONNX Runtime cannot be loaded"));
    ada_sise_close(none);
    other.onnxruntime = "libm.so.6";
    EXPECT(ada_sise_open(".", &other, &none) == ADA_SISE_RUNTIME && says(none, "is no ONNX Runtime"));
    ada_sise_close(none);
    other = *options;
    other.threads = -1;
    EXPECT(ada_sise_open(".", &other, &none) == ADA_SISE_ARGUMENT && says(none, "threads is -1"));
    ada_sise_close(none);
    other.threads = 1025;
    EXPECT(ada_sise_open(".", &other, &none) == ADA_SISE_ARGUMENT && says(none, "threads is 1025; expected 0 for one per core, or 1 to 1024"));
    ada_sise_close(none);

    const uint8_t *photo = (const uint8_t *)image;
    EXPECT(ada_sise_explain(NULL, image, values, -1, 0, heatmap, pixels, &result) == ADA_SISE_ARGUMENT);
    EXPECT(strcmp(result.message, "handle is NULL; expected that of an opened model") == 0);
    result.message[0] = 'x';
    EXPECT(ada_sise_explain_photo(NULL, photo, 4, 4, -1, 0, heatmap, pixels, &result) == ADA_SISE_ARGUMENT);
    EXPECT(strncmp(result.message, "handle is NULL", 14) == 0);
    EXPECT(ada_sise_explain(model, NULL, values, -1, 0, heatmap, pixels, NULL) == ADA_SISE_ARGUMENT && says(model, "image is NULL"));
    EXPECT(ada_sise_explain(model, image, values, -1, 0, NULL, pixels, NULL) == ADA_SISE_ARGUMENT && says(model, "heatmap is NULL"));
    EXPECT(ada_sise_explain(model, image, values - 1, -1, 0, heatmap, pixels, NULL) == ADA_SISE_ARGUMENT);
    EXPECT(says(model, "image has 2303 numbers; expected 2304"));
    EXPECT(ada_sise_explain(model, image, values, -1, 0, heatmap, pixels + 1, NULL) == ADA_SISE_ARGUMENT);
    EXPECT(says(model, "heatmap has 769 numbers; expected 768"));
    EXPECT(ada_sise_explain(model, image, values, -2, 0, heatmap, pixels, &result) == ADA_SISE_ARGUMENT);
    EXPECT(strcmp(result.message, "target is -2; expected -1 for the top-1 class, or 0 to 4") == 0);
    EXPECT(ada_sise_explain(model, image, values, 5, 0, heatmap, pixels, NULL) == ADA_SISE_ARGUMENT && says(model, "target is 5"));
    EXPECT(ada_sise_explain(model, image, values, 0, -1, heatmap, pixels, NULL) == ADA_SISE_ARGUMENT && says(model, "max_masks is -1"));
    EXPECT(ada_sise_explain_photo(model, photo, 4, 4, 0, 0, heatmap, pixels, NULL) == ADA_SISE_ARGUMENT);
    EXPECT(says(model, "--embed-preprocess"));
    EXPECT(ada_sise_get_info(model, NULL) == ADA_SISE_ARGUMENT && says(model, "info is NULL"));
    EXPECT(ada_sise_get_info(NULL, &info) == ADA_SISE_ARGUMENT);
    EXPECT(!ada_sise_label(model, -1) && !ada_sise_label(model, 5) && !ada_sise_label(NULL, 0));
    char one[1] = {'x'};
    ada_sise_error(model, one, 0);
    EXPECT(one[0] == 'x');
    ada_sise_error(model, one, 1);
    EXPECT(one[0] == '\0');
    ada_sise_error(NULL, one, 1);
    ada_sise_error(model, NULL, 10);
}

static void explain_what_is_not_finite(ada_sise *model, const float *image, size_t count, float *heatmap) {
    float *changed = malloc(count * sizeof *changed);
    memcpy(changed, image, count * sizeof *changed);
    changed[count - 1] = NAN;
    EXPECT(ada_sise_explain(model, changed, values, -1, 0, heatmap, pixels, NULL) == ADA_SISE_IMAGE && says(model, "the image holds NaN"));
    for (size_t i = 0; i < count; i++)
        changed[i] = i % 2 ? 3e38f : -3e38f; /* finite, and the network's sums are not */
    EXPECT(ada_sise_explain(model, changed, values, -1, 0, heatmap, pixels, NULL) == ADA_SISE_IMAGE && says(model, "computes NaN"));
    free(changed);
}

static void *call(void *argument) {
    work *own = argument;
    float *heatmap = malloc(pixels * sizeof *heatmap);
    for (int i = 0; i < own->calls; i++) {
        ada_sise_result result;
        if (i % 3 == 2) {
            own->failures += ada_sise_explain(own->model, own->image, values, 99, 0, heatmap, pixels, &result) != ADA_SISE_ARGUMENT;
            own->failures += strncmp(result.message, "target is 99", 12) != 0;
            continue;
        }
        own->failures += ada_sise_explain(own->model, own->image, values, -1, 0, heatmap, pixels, &result) != ADA_SISE_OK;
        own->failures += memcmp(heatmap, own->expected, pixels * sizeof *heatmap) != 0;
    }
    free(heatmap);
    return NULL;
}

static void call_from_threads(work shared, int threads) {
    pthread_t *running = malloc((size_t)threads * sizeof *running);
    work *works = malloc((size_t)threads * sizeof *works);
    for (int i = 0; i < threads; i++) {
        works[i] = shared;
        EXPECT(pthread_create(&running[i], NULL, call, &works[i]) == 0);
    }
    for (int i = 0; i < threads; i++) {
        pthread_join(running[i], NULL);
        EXPECT(works[i].failures == 0);
    }
    free(works);
    free(running);
}

static void explain_photos(const char *path, const ada_sise_options *options) {
    ada_sise *model = NULL;
    ada_sise_info info;
    EXPECT(ada_sise_open(path, options, &model) == ADA_SISE_OK);
    EXPECT(ada_sise_get_info(model, &info) == ADA_SISE_OK && info.takes_photos && info.channels == 3);
    float *heatmap = malloc((size_t)(info.height * info.width) * sizeof *heatmap);
    uint8_t *photo = malloc(50 * 70 * 3);
    for (int i = 0; i < 50 * 70 * 3; i++)
        photo[i] = (uint8_t)(i * i / 7);
    EXPECT(ada_sise_explain_photo(model, photo, 50, 70, -1, 0, heatmap, pixels, NULL) == ADA_SISE_OK);
    EXPECT(ada_sise_explain_photo(model, photo, 1, 1, -1, 3, heatmap, pixels, NULL) == ADA_SISE_OK);
    EXPECT(ada_sise_explain_photo(model, photo, 0, 70, -1, 0, heatmap, pixels, NULL) == ADA_SISE_ARGUMENT);
    EXPECT(says(model, "the photo is 0 pixels high and 70 wide; expected 1 or more, and 134217728 pixels in all at the most"));
    EXPECT(ada_sise_explain_photo(model, photo, 1LL << 40, 1, -1, 0, heatmap, pixels, NULL) == ADA_SISE_ARGUMENT);
    EXPECT(says(model, "the photo is 1099511627776 pixels high"));
    EXPECT(ada_sise_explain_photo(model, photo, INT32_MAX, INT32_MAX, -1, 0, heatmap, pixels, NULL) == ADA_SISE_ARGUMENT);
    EXPECT(ada_sise_explain_photo(model, photo, INT64_MAX, INT64_MAX, -1, 0, heatmap, pixels, NULL) == ADA_SISE_ARGUMENT);
    EXPECT(ada_sise_explain(model, heatmap, values, -1, 0, heatmap, pixels, NULL) == ADA_SISE_ARGUMENT);
    EXPECT(says(model, "ada_sise_explain_photo"));
    free(photo);
    free(heatmap);
    ada_sise_close(model);
}

int main(int count, char **words) {
    if (count < 12)
        return 100;
    const ada_sise_options options = {.onnxruntime = words[1], .threads = 1};
    const char *bundle = words[2];
    int opens = atoi(words[6]), threads = atoi(words[7]), calls = atoi(words[8]);
    float *image = read_floats(words[4], &values), *expected = read_floats(words[5], &pixels);
    float *heatmap = malloc(pixels * sizeof *heatmap);
    ada_sise *model = NULL;
    ada_sise_info info;
    ada_sise_result result;

    EXPECT(ada_sise_open(bundle, &options, &model) == ADA_SISE_OK);
    EXPECT(ada_sise_get_info(model, &info) == ADA_SISE_OK && !info.takes_photos);
    EXPECT((size_t)(info.channels * info.height * info.width) == values && (size_t)(info.height * info.width) == pixels);
    EXPECT(ada_sise_label(model, 4) != NULL && strcmp(ada_sise_label(model, 4), "cup") == 0);
    EXPECT(ada_sise_explain(model, image, values, -1, 0, heatmap, pixels, &result) == ADA_SISE_OK && result.message[0] == '\0');
    for (size_t i = 0; i < pixels; i++)
        EXPECT(fabsf(heatmap[i] - expected[i]) <= 1e-6f);
    memcpy(expected, heatmap, pixels * sizeof *heatmap); /* from here on the same bytes */
    use_badly(model, &options, image, heatmap);
    explain_what_is_not_finite(model, image, values, heatmap);
    call_from_threads((work){model, image, expected, calls, 0}, threads);
    explain_photos(words[3], &options);
    for (int i = 9; i < count; i++) {
        ada_sise *bad = NULL;
        EXPECT(ada_sise_open(words[i], &options, &bad) == ADA_SISE_FILE && says(bad, words[i]));
        EXPECT(says(bad, "; expected a whole bundle or single file, as python -m engine.export writes it"));
        ada_sise_close(bad);
    }
    for (int i = 0; i < opens; i++) {
        ada_sise *again = NULL;
        int good = i % 20 == 0;
        ada_sise_code code = ada_sise_open(good ? bundle : words[9 + i % 3], &options, &again);
        EXPECT(code == (good ? ADA_SISE_OK : ADA_SISE_FILE));
        ada_sise_close(again);
    }
    ada_sise_close(model);
    free(heatmap);
    free(expected);
    free(image);
    return failures > 99 ? 99 : failures;
}
