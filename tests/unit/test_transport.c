/* test_transport.c: which ranks may use NCCL, and what is said where they may not. */
#include "config.h"

#include "comm/comm_private.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

enum { N = 4, NCCL = 22803 };

/* A GPU each, all alike. */
static void reset(bs_place places[N])
{
    memset(places, 0, N * sizeof *places);
    for (int i = 0; i < N; i++) {
        places[i].is_gpu = 1;
        places[i].nccl_version = NCCL;
        memset(places[i].uuid, 'a' + i, sizeof places[i].uuid);
        snprintf(places[i].gpu, sizeof places[i].gpu, "NVIDIA H200");
    }
}

static void put_on_cpu(bs_place *place)
{
    memset(place, 0, sizeof *place);
}

static void expect(bs_status got, bs_status want, const char *line)
{
    assert_int_equal(got, want);
    assert_string_equal(bs_error_message(), line);
    bs_error_clear();
}

static void test_gpu_each(void **state)
{
    (void)state;
    bs_place places[N];
    reset(places);
    expect(bs_transport_check_kinds(places, N), BS_STATUS_OK, "");
    expect(bs_transport_check_nccl(places, N), BS_STATUS_OK, "");
    expect(bs_transport_check_sharing(places, N), BS_STATUS_OK, "");
}

static void test_kinds(void **state)
{
    (void)state;
    bs_place places[N];
    reset(places);
    snprintf(places[2].gpu, sizeof places[2].gpu, "NVIDIA H100");
    expect(bs_transport_check_kinds(places, N), BS_STATUS_UNSUPPORTED,
           "rank 0 is on NVIDIA H200, rank 2 on NVIDIA H100: devices of one kind are needed");
    put_on_cpu(&places[1]);
    expect(bs_transport_check_kinds(places, N), BS_STATUS_UNSUPPORTED,
           "rank 0 is on NVIDIA H200, rank 1 on a CPU: devices of one kind are needed");
    for (int i = 0; i < N; i++) put_on_cpu(&places[i]);
    expect(bs_transport_check_kinds(places, N), BS_STATUS_OK, "");
}

static void test_nccl(void **state)
{
    (void)state;
    bs_place places[N];
    reset(places);
    places[3].nccl_version = 22000;
    expect(bs_transport_check_nccl(places, N), BS_STATUS_UNSUPPORTED,
           "NCCL is version 22803 on rank 0, 22000 on rank 3");
    places[2].nccl_version = 0;
    snprintf(places[2].why, sizeof places[2].why, "libnccl.so.2 cannot be opened");
    expect(bs_transport_check_nccl(places, N), BS_STATUS_UNSUPPORTED,
           "no NCCL on rank 2: libnccl.so.2 cannot be opened");
    put_on_cpu(&places[1]);
    expect(bs_transport_check_nccl(places, N), BS_STATUS_USAGE, "--transport nccl: rank 1 has no GPU");
}

/* Ordinals say nothing, and CPUs share nothing. */
static void test_sharing(void **state)
{
    (void)state;
    bs_place places[N];
    reset(places);
    memcpy(places[3].uuid, places[1].uuid, sizeof places[1].uuid);
    expect(bs_transport_check_sharing(places, N), BS_STATUS_UNSUPPORTED, "ranks 1 and 3 share a GPU");
    for (int i = 0; i < N; i++) put_on_cpu(&places[i]);
    expect(bs_transport_check_sharing(places, N), BS_STATUS_OK, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gpu_each),
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_nccl),
        cmocka_unit_test(test_sharing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
