/* test_options.c: the options mechanism on a small table of every kind: values, ranges, environment, help,
 * man page. */
#include "config.h"

#include "src/base/options.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { COOK = 1, WASH = 2 };

static const bs_command commands[] = {
    {"cook", "DISH", 1, 2, "cooks a dish", "First paragraph.\n\nSecond one."},
    {"wash-up", "", 0, 0, "washes up", NULL},
};

static const bs_option table[] = {
    {"hot", 0, BS_OPTION_FLAG, false, NULL, NULL, 0, 0, NULL, "Stove", "with heat", COOK | WASH},
    {"lid", 'l', BS_OPTION_FLAG, false, NULL, "1", 0, 0, NULL, "Stove", "no lid", COOK},
    {"minutes", 'm', BS_OPTION_INT, false, "N", "10", 1, 600, NULL, "Stove", "how long", COOK},
    {"grains", 'g', BS_OPTION_INT, true, "N", "1K", 0, 0x1p63, NULL, "Stove", "rice", COOK},
    {"salt", 0, BS_OPTION_FLOAT, false, "X", "0.5", 0, 1, NULL, "Stove", "share of salt", COOK},
    {"note", 0, BS_OPTION_STRING, false, "TEXT", NULL, 0, 0, NULL, "Other", "free text", COOK | WASH},
    {"pan-size", 0, BS_OPTION_CHOICE, false, "SIZE", "small", 0, 0, "small|large", "Other", "which pan",
     COOK},
    {"spice", 's', BS_OPTION_LIST, false, "NAME", NULL, 0, 0, NULL, "Other", "spice, several times", COOK},
};
enum { N_OPTIONS = sizeof table / sizeof table[0], N_COMMANDS = 2 };

static const char *const variables[] = {"BITSHARD_HOT",      "BITSHARD_LID",   "BITSHARD_MINUTES",
                                        "BITSHARD_PAN_SIZE", "BITSHARD_SPICE", "BITSHARD_NOTE",
                                        "BITSHARD_SALT"};

static int clean(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof variables / sizeof variables[0]; i++) unsetenv(variables[i]);
    bs_error_clear();
    return 0;
}

/* Parses "cook" with the arguments up to NULL. */
static bs_status parse(bs_options **out, int command, ...)
{
    char *argv[16] = {"argv0"};
    int argc = 1;
    va_list arguments;
    va_start(arguments, command);
    for (char *a; (a = va_arg(arguments, char *)); argc++) argv[argc] = a;
    va_end(arguments);
    return bs_options_parse(table, N_OPTIONS, commands, command, argc, argv, out);
}

#define ACCEPT(options, ...) assert_int_equal(parse(&(options), 0, __VA_ARGS__, NULL), BS_STATUS_OK)
/* The status is USAGE, the output untouched, and the line is exactly this one. */
#define REFUSE(line, ...)                                                                                    \
    do {                                                                                                     \
        bs_options *none = NULL;                                                                             \
        assert_int_equal(parse(&none, 0, __VA_ARGS__, NULL), BS_STATUS_USAGE);                               \
        assert_null(none);                                                                                   \
        assert_string_equal(bs_error_message(), line);                                                       \
        bs_error_clear();                                                                                    \
    } while (0)

static void test_defaults(void **state)
{
    (void)state;
    bs_options *o;
    ACCEPT(o, "soup");
    assert_false(bs_options_flag(o, "hot"));
    assert_true(bs_options_flag(o, "lid"));
    assert_int_equal(bs_options_int(o, "minutes"), 10);
    assert_int_equal(bs_options_int(o, "grains"), 1024);
    assert_true(bs_options_float(o, "salt") == 0.5);
    assert_null(bs_options_string(o, "note"));
    assert_string_equal(bs_options_string(o, "pan-size"), "small");
    assert_int_equal(bs_options_count(o, "spice"), 0);
    for (int i = 0; i < N_OPTIONS; i++) assert_false(bs_options_given(o, table[i].name));
    assert_int_equal(bs_options_n_operands(o), 1);
    assert_string_equal(bs_options_operand(o, 0), "soup");
    assert_false(bs_options_help(o));
    bs_options_free(o);
    bs_options_free(NULL);
}

static void test_every_kind(void **state)
{
    (void)state;
    bs_options *o;
    ACCEPT(o, "--hot", "--no-lid", "-m7", "soup", "--grains=3M", "--salt", "1e-1", "--note", "--hot",
           "--pan-size", "large", "-s", "dill", "--spice=", "-");
    assert_true(bs_options_flag(o, "hot"));
    assert_false(bs_options_flag(o, "lid"));
    assert_int_equal(bs_options_int(o, "minutes"), 7);
    assert_int_equal(bs_options_int(o, "grains"), 3 << 20);
    assert_true(bs_options_float(o, "salt") == 0.1);
    assert_string_equal(bs_options_string(o, "note"), "--hot");
    assert_string_equal(bs_options_string(o, "pan-size"), "large");
    assert_int_equal(bs_options_count(o, "spice"), 2);
    assert_string_equal(bs_options_item(o, "spice", 0), "dill");
    assert_string_equal(bs_options_item(o, "spice", 1), "");
    assert_true(bs_options_given(o, "lid") && bs_options_given(o, "spice"));
    assert_int_equal(bs_options_n_operands(o), 2);
    assert_string_equal(bs_options_operand(o, 1), "-");
    bs_options_free(o);
}

static void test_last_one_wins_and_dashes_end(void **state)
{
    (void)state;
    bs_options *o;
    ACCEPT(o, "-m", "7", "--minutes", "8", "--hot", "--no-hot", "--", "-m", "--hot");
    assert_int_equal(bs_options_int(o, "minutes"), 8);
    assert_false(bs_options_flag(o, "hot"));
    assert_true(bs_options_given(o, "hot"));
    assert_string_equal(bs_options_operand(o, 0), "-m");
    assert_string_equal(bs_options_operand(o, 1), "--hot");
    bs_options_free(o);
}

static void test_sizes(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int64_t value;
        const char *end;
    } good[] = {{"0", 0, ""},          {"12", 12, ""},         {"1k", 1024, ""}, {"3M", 3 << 20, ""},
                {"2G", 1ll << 31, ""}, {"1K,2K", 1024, ",2K"}, {"5s", 5, "s"},   {"-1K", -1024, ""}};
    static const char *const bad[] = {"", "K", " 1", "+1", "x", "9223372036854775808", "9007199254740992K"};
    const char *end;
    int64_t n;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        assert_true(bs_options_read_size(good[i].text, &end, &n));
        assert_int_equal(n, good[i].value);
        assert_string_equal(end, good[i].end);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_false(bs_options_read_size(bad[i], &end, &n));
}

static void test_numbers_out_of_range(void **state)
{
    (void)state;
    REFUSE("--minutes 0: must be a whole number, 1 to 600", "x", "--minutes", "0");
    REFUSE("-m 601: must be a whole number, 1 to 600", "x", "-m601");
    REFUSE("--minutes -5: must be a whole number, 1 to 600", "x", "--minutes", "-5");
    REFUSE("--minutes 7K: must be a whole number, 1 to 600", "x", "--minutes", "7K");
    REFUSE("--minutes : must be a whole number, 1 to 600", "x", "--minutes", "");
    REFUSE("--minutes  7: must be a whole number, 1 to 600", "x", "--minutes", " 7");
    REFUSE("--minutes 0x10: must be a whole number, 1 to 600", "x", "--minutes", "0x10");
    REFUSE("--minutes 99999999999999999999: must be a whole number, 1 to 600", "x", "--minutes",
           "99999999999999999999");
    REFUSE(
        "--grains 9007199254740992K: must be a whole number, 0 or more (K, M and G are 1024 and its powers)",
        "x", "--grains", "9007199254740992K");
    REFUSE("--grains 1T: must be a whole number, 0 or more (K, M and G are 1024 and its powers)", "x",
           "--grains", "1T");
    REFUSE("--grains 1KK: must be a whole number, 0 or more (K, M and G are 1024 and its powers)", "x",
           "--grains", "1KK");
    REFUSE("--salt 1.01: must be a number, 0 to 1", "x", "--salt", "1.01");
    REFUSE("--salt nan: must be a number, 0 to 1", "x", "--salt", "nan");
    REFUSE("--salt inf: must be a number, 0 to 1", "x", "--salt", "inf");
    REFUSE("--salt 0x1p-1: must be a number, 0 to 1", "x", "--salt", "0x1p-1");
    REFUSE("--salt 1e: must be a number, 0 to 1", "x", "--salt", "1e");
    REFUSE("--salt : must be a number, 0 to 1", "x", "--salt=");
}

static void test_scaled_limits(void **state)
{
    (void)state;
    bs_options *o;
    ACCEPT(o, "x", "--grains", "9223372036854775807");
    assert_true(bs_options_int(o, "grains") == INT64_MAX);
    bs_options_free(o);
    ACCEPT(o, "x", "--grains", "2g", "-m", "600");
    assert_true(bs_options_int(o, "grains") == 2ll << 30);
    bs_options_free(o);
}

static void test_wrong_usage(void **state)
{
    (void)state;
    REFUSE("--cold: not an option of cook; see bitshard cook --help", "x", "--cold");
    REFUSE("--no-minutes: not an option of cook; see bitshard cook --help", "x", "--no-minutes");
    REFUSE("-z: not an option of cook; see bitshard cook --help", "x", "-z");
    REFUSE("--minutes: needs a value, N", "x", "--minutes");
    REFUSE("--hot: takes no value", "x", "--hot=1");
    REFUSE("-l: takes no value", "x", "-lx");
    REFUSE("--pan-size huge: must be one of small|large", "x", "--pan-size", "huge");
    REFUSE("--pan-size small|large: must be one of small|large", "x", "--pan-size", "small|large");
    REFUSE("--pan-size : must be one of small|large", "x", "--pan-size", "");
    REFUSE("cook: needs the operand DISH", "--hot");
    REFUSE("cook: unexpected operand 'c'", "a", "b", "c");
    bs_options *o = NULL;
    assert_int_equal(parse(&o, 1, "--minutes", "3", NULL), BS_STATUS_USAGE);
    assert_string_equal(bs_error_message(),
                        "--minutes: not an option of wash-up; see bitshard wash-up --help");
}

/* One name, another kind of value for each command. */
static void test_name_of_two_rows(void **state)
{
    (void)state;
    static const bs_option rows[] = {
        {"minutes", 0, BS_OPTION_INT, false, "N", "10", 1, 600, NULL, "Stove", "how long", COOK},
        {"minutes", 0, BS_OPTION_STRING, false, "WORD", "few", 0, 0, NULL, "Other", "how long", WASH},
    };
    char *arguments[] = {"argv0", "--minutes", "3", "soup"}, *words[] = {"argv0", "--minutes", "ten"};
    bs_options *o;
    assert_int_equal(bs_options_parse(rows, 2, commands, 0, 4, arguments, &o), BS_STATUS_OK);
    assert_int_equal(bs_options_int(o, "minutes"), 3);
    bs_options_free(o);
    assert_int_equal(bs_options_parse(rows, 2, commands, 1, 1, words, &o), BS_STATUS_OK);
    assert_string_equal(bs_options_string(o, "minutes"), "few");
    assert_false(bs_options_given(o, "minutes"));
    bs_options_free(o);
    assert_int_equal(bs_options_parse(rows, 2, commands, 1, 3, words, &o), BS_STATUS_OK);
    assert_string_equal(bs_options_string(o, "minutes"), "ten");
    bs_options_free(o);
    setenv("BITSHARD_MINUTES", "some", 1);
    assert_int_equal(bs_options_parse(rows, 2, commands, 1, 1, words, &o), BS_STATUS_OK);
    assert_string_equal(bs_options_string(o, "minutes"), "some");
    bs_options_free(o);
}

static void test_environment(void **state)
{
    (void)state;
    bs_options *o;
    setenv("BITSHARD_HOT", "1", 1);
    setenv("BITSHARD_LID", "0", 1);
    setenv("BITSHARD_MINUTES", "20", 1);
    setenv("BITSHARD_PAN_SIZE", "large", 1);
    setenv("BITSHARD_SPICE", "anise", 1);
    setenv("BITSHARD_SALT", "", 1);
    ACCEPT(o, "x");
    assert_true(bs_options_flag(o, "hot"));
    assert_false(bs_options_flag(o, "lid"));
    assert_int_equal(bs_options_int(o, "minutes"), 20);
    assert_string_equal(bs_options_string(o, "pan-size"), "large");
    assert_int_equal(bs_options_count(o, "spice"), 1);
    assert_true(bs_options_given(o, "minutes"));
    assert_false(bs_options_given(o, "salt"));
    bs_options_free(o);
    /* The command line wins, and a bad variable it overrides does not matter. */
    setenv("BITSHARD_MINUTES", "soon", 1);
    ACCEPT(o, "x", "--minutes", "30", "--no-hot", "-s", "dill");
    assert_int_equal(bs_options_int(o, "minutes"), 30);
    assert_false(bs_options_flag(o, "hot"));
    assert_int_equal(bs_options_count(o, "spice"), 1);
    assert_string_equal(bs_options_item(o, "spice", 0), "dill");
    bs_options_free(o);
    REFUSE("BITSHARD_MINUTES soon: must be a whole number, 1 to 600", "x");
    setenv("BITSHARD_MINUTES", "601", 1);
    REFUSE("BITSHARD_MINUTES 601: must be a whole number, 1 to 600", "x");
    unsetenv("BITSHARD_MINUTES");
    setenv("BITSHARD_HOT", "yes", 1);
    REFUSE("BITSHARD_HOT yes: must be 0 or 1", "x");
    /* Variables of options that the subcommand does not take are not looked at. */
    setenv("BITSHARD_HOT", "1", 1);
    setenv("BITSHARD_SALT", "9", 1);
    assert_int_equal(parse(&o, 1, NULL), BS_STATUS_OK);
    assert_true(bs_options_flag(o, "hot"));
    bs_options_free(o);
}

static void test_help_ends_parsing(void **state)
{
    (void)state;
    bs_options *o;
    setenv("BITSHARD_MINUTES", "soon", 1);
    ACCEPT(o, "-h", "--nonsense");
    assert_true(bs_options_help(o));
    bs_options_free(o);
    ACCEPT(o, "--minutes", "3", "--help");
    assert_true(bs_options_help(o));
    bs_options_free(o);
    ACCEPT(o, "x", "-m", "3", "--note", "--help"); /* a value, not the option */
    assert_false(bs_options_help(o));
    assert_string_equal(bs_options_string(o, "note"), "--help");
    bs_options_free(o);
}

/* What a printer prints, to be freed. */
static char *printed(int command, bool man)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    if (man) {
        bs_options_print_man(table, N_OPTIONS, commands, N_COMMANDS, "1.2.3", out);
    } else {
        bs_options_print_help(table, N_OPTIONS, commands, N_COMMANDS, command, out);
    }
    fclose(out);
    return text;
}

static void test_help(void **state)
{
    (void)state;
    char *text = printed(0, false);
    const char *expected = "Usage: bitshard cook [OPTION]... DISH\n"
                           "\n"
                           "cooks a dish\n"
                           "\n"
                           "First paragraph.\n"
                           "\n"
                           "Second one.\n"
                           "\n"
                           "Stove:\n"
                           "      --hot                 with heat\n"
                           "  -l, --no-lid              no lid\n"
                           "  -m, --minutes N           how long [10]\n"
                           "  -g, --grains N            rice [1K]\n"
                           "      --salt X              share of salt [0.5]\n"
                           "\n"
                           "Other:\n"
                           "      --note TEXT           free text\n"
                           "      --pan-size SIZE       which pan: small|large [small]\n"
                           "  -s, --spice NAME          spice, several times\n"
                           "\n"
                           "  -h, --help                this text\n";
    assert_string_equal(text, expected);
    free(text);
    text = printed(1, false);
    assert_non_null(strstr(text, "--hot "));
    assert_null(strstr(text, "--minutes"));
    assert_null(strstr(text, "Other:\n  -"));
    free(text);
    text = printed(-1, false);
    assert_non_null(strstr(text, "\n  wash-up      washes up\n"));
    free(text);
}

static void test_man(void **state)
{
    (void)state;
    char *text = printed(0, true);
    assert_non_null(strstr(text, ".TH BITSHARD 1 \"\" \"bitshard 1.2.3\""));
    assert_non_null(strstr(text, "\\fBbitshard wash\\-up\\fR [\\fIOPTION\\fR]..."));
    assert_non_null(strstr(text, ".PP\nSecond one.\n"));
    assert_non_null(
        strstr(text, ".TP\n\\fB\\-m\\fR, \\fB\\-\\-minutes\\fR \\fIN\\fR\nhow long.\nA whole number, 1 to "
                     "600.\nDefault: 10.\nEnvironment: \\fBBITSHARD_MINUTES\\fR. Commands: cook.\n"));
    for (int i = 0; i < N_OPTIONS; i++) {
        char env[BS_OPTION_ENV_NAME];
        bs_options_env_name(&table[i], env);
        char *at = strstr(text, env);
        assert_non_null(at);
        char again[BS_OPTION_ENV_NAME + 4];
        snprintf(again, sizeof again, "%s\\fR", env);
        assert_null(strstr(at + 1, again)); /* once */
    }
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_defaults, clean),
        cmocka_unit_test_setup(test_every_kind, clean),
        cmocka_unit_test_setup(test_sizes, clean),
        cmocka_unit_test_setup(test_last_one_wins_and_dashes_end, clean),
        cmocka_unit_test_setup(test_numbers_out_of_range, clean),
        cmocka_unit_test_setup(test_scaled_limits, clean),
        cmocka_unit_test_setup(test_wrong_usage, clean),
        cmocka_unit_test_setup(test_name_of_two_rows, clean),
        cmocka_unit_test_setup(test_environment, clean),
        cmocka_unit_test_setup(test_help_ends_parsing, clean),
        cmocka_unit_test_setup(test_help, clean),
        cmocka_unit_test_setup(test_man, clean),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
