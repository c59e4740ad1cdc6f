/* A QEMU plugin that counts the AArch64 instructions between two marks, by kind.
 *
 * The program under QEMU makes a mark with a system call that does not exist: number MARK with 0 starts a count, with 1
 * ends it and appends one line of JSON to the file that the option out= names: counts by page of code. Between marks one thread should run.
 *
 * QEMU's packages bring no qemu-plugin.h. What is declared here is version 1 of the interface, as QEMU documents it
 * (docs/devel/tcg-plugins.rst). Encodings: Arm Architecture Reference Manual, "A64 instruction set encoding".
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define MARK 0x7ace

struct qemu_plugin_tb;
struct qemu_plugin_insn;
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int op, void *, uint64_t);
extern void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t, void (*)(uint64_t, struct qemu_plugin_tb *));
typedef void syscall_cb(uint64_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                        uint64_t);
extern void qemu_plugin_register_vcpu_syscall_cb(uint64_t, syscall_cb *);

EXPORT int qemu_plugin_version = 1;

enum { ADD_U64 = 0 };

static const struct kind {
    const char *name;
    struct { uint32_t mask, bits; } patterns[2]; /* an instruction is of this kind if one of them fits */
} kinds[] = {
    {"all", {{0, 0}, {0, 1}}},
    {"memory", {{0x0a000000, 0x08000000}, {0, 1}}}, /* loads and stores */
    {"vector", {{0x0e000000, 0x0e000000}, {0, 1}}}, /* SIMD and floating point */
    {"fmadd", {{0xff208000, 0x1f000000}, {0, 1}}},  /* scalar multiply-add */
    {"fmla_fp32", {{0xbfe0fc00, 0x0e20cc00}, {0xbfc0f400, 0x0f801000}}},
    {"fmla_fp16", {{0xbfe0fc00, 0x0e400c00}, {0xbfc0f400, 0x0f001000}}},
    {"dot_int8", {{0x9fe0fc00, 0x0e809400}, {0x9fc0f400, 0x0f80e000}}}, /* SDOT and UDOT */
};
#define KINDS (sizeof kinds / sizeof *kinds)

/* Counts for each page of code, so that they can be told apart by library. An entry never moves: code counts into it. */
#define PAGES (1u << 16)
static struct page {
    uint64_t number, counts[KINDS];
} pages[PAGES];

static char out[4096];
static pthread_mutex_t adding = PTHREAD_MUTEX_INITIALIZER;

static struct page *page_of(uint64_t address) {
    uint64_t number = address >> 12;
    uint32_t slot = (uint32_t)(number * 0x9e3779b97f4a7c15u >> 48) % (PAGES - 1) + 1; /* slot 0 takes what finds none */
    for (uint32_t tried = 0; tried < 64; tried++, slot = slot % (PAGES - 1) + 1) {
        if (!pages[slot].number) pages[slot].number = number;
        if (pages[slot].number == number) return &pages[slot];
    }
    return &pages[0];
}

/* What a block adds to one page. Added where the block begins: it runs to its end, or the program ends. */
static void count(struct qemu_plugin_tb *block, struct page *page, uint64_t *found) {
    for (size_t kind = 0; kind < KINDS; kind++)
        if (found[kind])
            qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &page->counts[kind], found[kind]);
    memset(found, 0, KINDS * sizeof *found);
}

static void translated(uint64_t id, struct qemu_plugin_tb *block) {
    (void)id;
    struct page *page = NULL;
    uint64_t found[KINDS] = {0};
    pthread_mutex_lock(&adding);
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
        struct page *here = page_of(qemu_plugin_insn_vaddr(instruction));
        uint32_t word;
        if (page && here != page) count(block, page, found);
        page = here;
        memcpy(&word, qemu_plugin_insn_data(instruction), sizeof word);
        for (size_t kind = 0; kind < KINDS; kind++)
            for (int j = 0; j < 2; j++)
                found[kind] += (word & kinds[kind].patterns[j].mask) == kinds[kind].patterns[j].bits;
    }
    if (page) count(block, page, found);
    pthread_mutex_unlock(&adding);
}

/* One line: {"ADDRESS OF A PAGE": [counts by kind], ...} */
static void report(void) {
    FILE *file = fopen(out, "a");
    if (!file) return;
    const char *before = "{";
    for (struct page *page = pages; page < pages + PAGES; page++) {
        if (!page->counts[0]) continue;
        fprintf(file, "%s\"%" PRIu64 "\": [", before, page->number << 12);
        for (size_t kind = 0; kind < KINDS; kind++) fprintf(file, "%s%" PRIu64, kind ? ", " : "", page->counts[kind]);
        fputs("]", file);
        before = ", ";
    }
    fputs("}\n", file);
    fclose(file);
}

static void called(uint64_t id, unsigned cpu, int64_t number, uint64_t end, uint64_t a2, uint64_t a3, uint64_t a4,
                   uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
    (void)id, (void)cpu, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != MARK) return;
    if (end) report();
    for (struct page *page = pages; page < pages + PAGES; page++) memset(page->counts, 0, sizeof page->counts);
}

EXPORT int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "out=", 4)) snprintf(out, sizeof out, "%s", argv[i] + 4);
    if (!*out) return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
