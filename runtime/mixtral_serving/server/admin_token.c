/* Loaded into tritonserver ahead of its libraries: puts the admin token into its arguments.
 *
 * Triton takes the token on its command line alone, and /proc/PID/cmdline and ps show that to every user. So the
 * command line holds CLOSED, a header that nobody can send, and argv is pointed at a copy that holds the token instead:
 * the memory that ps reads stays as it was. If anything goes wrong, the endpoints stay closed. */

#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void forget_preload(void) { /* the models' processes need no part of this */
    const char *loaded = getenv("LD_PRELOAD");
    const char *rest = loaded ? strchr(loaded, ':') : NULL;
    if (rest)
        setenv("LD_PRELOAD", strdup(rest + 1), 1);
    else
        unsetenv("LD_PRELOAD");
    unsetenv("MIXTRAL_ADMIN_TOKEN_FILE");
}

static int read_token(const char *path, char *token, int size) {
    FILE *file = fopen(path, "r");
    if (!file)
        return 0;
    int found = fgets(token, size, file) != NULL;
    fclose(file);
    token[found ? strcspn(token, " \r\n") : 0] = '\0';
    return token[0] != '\0';
}

__attribute__((constructor)) static void insert_token(int argc, char **argv) {
    const char *path = getenv("MIXTRAL_ADMIN_TOKEN_FILE");
    char token[1024];
    if (strcmp(program_invocation_short_name, "tritonserver") != 0) /* mpirun, or a shell around the server */
        return;
    if (path && read_token(path, token, sizeof token)) {
        for (int i = 1; i < argc; i++) {
            size_t length = strlen(argv[i]), closed = strlen(CLOSED);
            char *opened;
            if (length >= closed && strcmp(argv[i] + length - closed, CLOSED) == 0 &&
                asprintf(&opened, "%.*s" HEADER "=%s", (int)(length - closed), argv[i], token) > 0)
                argv[i] = opened;
        }
        explicit_bzero(token, sizeof token);
    }
    forget_preload();
}
