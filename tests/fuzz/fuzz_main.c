/* fuzz_main.c: replays files through a fuzz target: the committed corpus in make check, a crash by hand.
 *
 * Arguments are files and directories; without any, $srcdir/tests/fuzz/corpus/NAME, NAME from the program's own name,
 * fuzz_NAME. Each file is given in a block of its own size, so that a sanitizer sees a read behind its end.
 */
#include "config.h"

#include "tests/fuzz/fuzz.h"

#include <dirent.h>
#include <string.h>
#include <sys/stat.h>

static int n_files;

static bool replay_file(const char *path)
{
    struct stat info;
    FILE *file = fopen(path, "rb");
    if (!file || fstat(fileno(file), &info) != 0) {
        perror(path);
        return false;
    }
    size_t bytes = (size_t)info.st_size;
    uint8_t *data = malloc(bytes ? bytes : 1);
    bool whole = data && fread(data, 1, bytes, file) == bytes;
    fclose(file);
    if (whole) LLVMFuzzerTestOneInput(data, bytes);
    free(data);
    n_files++;
    return whole;
}

static bool replay(const char *path)
{
    DIR *dir = opendir(path);
    if (!dir) return replay_file(path);
    bool good = true;
    for (struct dirent *entry; (entry = readdir(dir));) {
        char inner[4096];
        if (entry->d_name[0] == '.') continue;
        snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name);
        good = replay_file(inner) && good;
    }
    closedir(dir);
    return good;
}

int main(int argc, char **argv)
{
    const char *top = getenv("srcdir"), *name = strstr(argv[0], "fuzz_");
    bool good = true;
    if (argc == 1) {
        char path[4096];
        for (const char *next; name && (next = strstr(name + 5, "fuzz_"));) name = next;
        snprintf(path, sizeof path, "%s/tests/fuzz/corpus/%s", top ? top : ".", name ? name + 5 : "");
        good = replay(path);
    }
    for (int i = 1; i < argc; i++) good = replay(argv[i]) && good;
    printf("%d files\n", n_files);
    return good && n_files > 0 ? 0 : 1;
}
