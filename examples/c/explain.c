/* Explains a photo: explain MODEL PHOTO HEATMAP.pgm [TARGET [MAX_MASKS]]
 *
 * MODEL is a bundle or a single file that was exported with --embed-preprocess; PHOTO is PPM (P6), or PNG if this was
 * built with libpng. The heatmap is a grey picture: white is what made the model answer as it did. */

#include <ada_sise.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#ifdef WITH_PNG
#include <png.h>
#define EXPECTED "expected that, or PNG whose name ends in .png: convert the photo"
#else
#define EXPECTED "expected that: convert the photo, or build this with libpng to read PNG"
#endif

typedef struct photo {
    uint8_t *pixels; /* [height, width, 3] */
    int64_t height, width;
} photo;

#ifdef WITH_PNG
static int read_png(const char *path, photo *read) {
    png_image image = {.version = PNG_IMAGE_VERSION};
    if (!png_image_begin_read_from_file(&image, path)) {
        fprintf(stderr, "%s: %s\n", path, image.message);
        return 0;
    }
    image.format = PNG_FORMAT_RGB;
    read->height = image.height;
    read->width = image.width;
    read->pixels = malloc(PNG_IMAGE_SIZE(image));
    const png_color white = {255, 255, 255};
    if (!read->pixels || !png_image_finish_read(&image, &white, read->pixels, 0, NULL)) {
        fprintf(stderr, "%s: %s\n", path, read->pixels ? image.message : "is too large");
        png_image_free(&image);
        return 0;
    }
    return 1;
}
#endif

static int read_ppm(const char *path, photo *read) {
    FILE *file = fopen(path, "rb");
    long height = 0, width = 0, largest = 0;
    if (!file) {
        perror(path);
        return 0;
    }
    int whole = fscanf(file, "P6 %ld %ld %ld", &width, &height, &largest) == 3 && fgetc(file) != EOF &&
                largest == 255 && height > 0 && width > 0 && height <= ADA_SISE_MOST_PIXELS / width;
    if (whole) {
        size_t bytes = (size_t)height * (size_t)width * 3;
        read->pixels = malloc(bytes);
        whole = read->pixels && fread(read->pixels, 1, bytes, file) == bytes;
    }
    fclose(file);
    read->height = height;
    read->width = width;
    if (!whole)
        fprintf(stderr, "%s: is no whole PPM picture (P6, 8 bits, without comments); " EXPECTED "\n", path);
    return whole;
}

static int read_photo(const char *path, photo *read) {
#ifdef WITH_PNG
    const char *dot = strrchr(path, '.');
    if (dot && strcasecmp(dot, ".png") == 0)
        return read_png(path, read);
#endif
    return read_ppm(path, read);
}

/* Whether both paths lead to one file. */
static int same_file(const char *path, const char *other) {
    struct stat first, second;
    return stat(path, &first) == 0 && stat(other, &second) == 0 && first.st_dev == second.st_dev &&
           first.st_ino == second.st_ino;
}

static int write_pgm(const char *path, const float *heatmap, const ada_sise_info *info) {
    FILE *file = fopen(path, "wb");
    if (!file) {
        perror(path);
        return 0;
    }
    fprintf(file, "P5 %lld %lld 255\n", (long long)info->width, (long long)info->height);
    for (int64_t i = 0; i < info->height * info->width; i++)
        fputc((int)(heatmap[i] * 255.0f + 0.5f), file);
    if (fclose(file) != 0) {
        perror(path);
        return 0;
    }
    return 1;
}

static void print_result(const ada_sise *model, const ada_sise_result *result, int64_t layers) {
    int64_t masks = 0;
    for (int64_t layer = 0; layer < layers; layer++)
        masks += result->scored[layer];
    const char *label = ada_sise_label(model, result->target);
    printf("%s (%lld): score %.4g, %lld masks, %.0f ms\n", label ? label : "class", (long long)result->target,
           result->class_score, (long long)masks, result->milliseconds);
}

/* Reads a whole number, all of the word. */
static int read_number(const char *word, int64_t *number) {
    char *end = NULL;
    errno = 0;
    *number = strtoll(word, &end, 10);
    if (errno == 0 && end != word && *end == '\0')
        return 1;
    fprintf(stderr, "%s: is no whole number\n", word);
    return 0;
}

int main(int count, char **words) {
    if (count < 4 || count > 6) {
        fprintf(stderr, "usage: %s MODEL PHOTO HEATMAP.pgm [TARGET [MAX_MASKS]]\n", words[0]);
        return 2;
    }
    int64_t target = ADA_SISE_TOP_CLASS, max_masks = ADA_SISE_ALL_MASKS;
    if ((count > 4 && !read_number(words[4], &target)) || (count > 5 && !read_number(words[5], &max_masks)))
        return 2;
    if (same_file(words[3], words[1]) || same_file(words[3], words[2])) {
        fprintf(stderr, "%s: is the model or the photo; expected another file for the heatmap\n", words[3]);
        return 2;
    }
    char message[ADA_SISE_MESSAGE_BYTES] = "";
    ada_sise *model = NULL;
    ada_sise_info info;
    ada_sise_result result;
    photo read = {0};
    float *heatmap = NULL;
    int done = 0;

    ada_sise_code code = ada_sise_open(words[1], NULL, &model);
    if (!code)
        code = ada_sise_get_info(model, &info);
    if (!code && read_photo(words[2], &read)) {
        size_t pixels = (size_t)(info.height * info.width);
        heatmap = malloc(pixels * sizeof *heatmap);
        code = heatmap ? ada_sise_explain_photo(model, read.pixels, read.height, read.width, target, max_masks, heatmap,
                                                pixels, &result)
                       : ADA_SISE_MEMORY;
        if (!code && write_pgm(words[3], heatmap, &info)) {
            print_result(model, &result, info.layers);
            done = 1;
        }
    }
    if (code) {
        ada_sise_error(model, message, sizeof message);
        fprintf(stderr, "error: %s\n", message[0] ? message : "there is no more memory");
    }
    free(heatmap);
    free(read.pixels);
    ada_sise_close(model);
    return done ? 0 : 2;
}
