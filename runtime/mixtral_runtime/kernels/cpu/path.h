// Which instructions a kernel may use. A function that uses more than x86-64's common ones stands between
// `#pragma GCC push_options`, `#pragma GCC target(AVX2)` and `pop_options`, after all #include lines: an inline function
// of a header, compiled with AVX-512, could replace the common one in the whole library.
#pragma once

namespace mixtral {

// avx2: with FMA and F16C. avx512: F, BW, DQ, VL and VNNI. amx: tiles of int8 and bfloat16, AVX512_BF16 and AVX512_FP16.
enum class Path { none, avx2, avx512, amx };

// The one that `set_path` chose.
Path path();

}  // namespace mixtral

#define MIXTRAL_AVX2 "avx2,fma,f16c"
#define MIXTRAL_AVX512 MIXTRAL_AVX2 ",avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
#define MIXTRAL_AMX MIXTRAL_AVX512 ",avx512bf16,avx512fp16,amx-tile,amx-int8,amx-bf16"
