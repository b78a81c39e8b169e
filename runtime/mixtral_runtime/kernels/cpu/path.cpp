// The CPU's best path, and the one chosen.

#include "path.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <torch/csrc/stable/library.h>
#include <unistd.h>

namespace mixtral {
namespace {

Path chosen = Path::none;

constexpr int ARCH_REQ_XCOMP_PERM = 0x1023;
constexpr int XFEATURE_XTILEDATA = 18;

bool has_amx() {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    const bool bf16_tiles = d >> 22 & 1, fp16 = d >> 23 & 1, tiles = d >> 24 & 1, int8_tiles = d >> 25 & 1;
    if (!(bf16_tiles && fp16 && tiles && int8_tiles)) return false;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return false;  // AVX512_BF16
    // The system gives tiles to those who ask, once per process: they make every thread's saved state 8 KiB larger.
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

int64_t best_path() {
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")))
        return int64_t(Path::none);
    if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
          __builtin_cpu_supports("avx512vnni")))
        return int64_t(Path::avx2);
    return int64_t(has_amx() ? Path::amx : Path::avx512);
}

void set_path(int64_t path) { chosen = Path(path); }

}  // namespace

Path path() { return chosen; }

}  // namespace mixtral

STABLE_TORCH_LIBRARY_FRAGMENT(mixtral_cpu, m) {
    m.def("best_path() -> int");
    m.def("set_path(int path) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(mixtral_cpu, CompositeExplicitAutograd, m) {  // they have no tensor that would say CPU
    m.impl("best_path", TORCH_BOX(&mixtral::best_path));
    m.impl("set_path", TORCH_BOX(&mixtral::set_path));
}
