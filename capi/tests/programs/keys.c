/* Two ranks with different keys, which meet at an address and by an id: an error that names the variable, on both, and
 * shows no key. */
#include "check.h"
#include <pthread.h>

static maypole_unique_id id;

static maypole_config with_own_key(int rank) {
    maypole_config config = MAYPOLE_CONFIG_INIT;
    config.connect_timeout = 4;
    config.settings = rank ? "MAYPOLE_KEY=another secret, of more than sixteen bytes"
                           : "MAYPOLE_KEY=one secret, of more than sixteen bytes";
    return config;
}

static void told(maypole_status status) {
    REFUSED(status, MAYPOLE_ERROR_BOOTSTRAP, "another key");
    CHECK(strstr(maypole_last_error(), "MAYPOLE_KEY"));
    CHECK(!strstr(maypole_last_error(), "secret"));
}

static void *by_id(void *which) {
    const int rank = *(const int *)which;
    const maypole_config config = with_own_key(rank);
    maypole_comm comm;
    told(maypole_comm_init_id(&id, rank, 2, &config, &comm));
    return NULL;
}

int main(void) {
    static const int ranks[2] = {0, 1};
    const int rank = getenv("RANK") && strcmp(getenv("RANK"), "0") != 0;
    maypole_config config = with_own_key(0);
    maypole_comm comm;
    pthread_t threads[2];

    OK(maypole_unique_id_create(&config, &id));
    for (int i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, by_id, (void *)&ranks[i]) == 0);
    config = with_own_key(rank);
    told(maypole_comm_init_env(&config, &comm));
    for (int i = 0; i < 2; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    printf("fine\n");
    return 0;
}
