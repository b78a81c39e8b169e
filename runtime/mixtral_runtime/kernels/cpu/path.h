// Which instructions a kernel may use.
//
// A function that uses more than x86-64's common ones stands between MIXTRAL_BEGIN_... and MIXTRAL_END, after all #include
// lines: an inline function of a header, compiled for AVX-512, could replace the common one in the whole library.
#pragma once

namespace mixtral {

// avx2: with FMA and F16C. avx512: F, BW, DQ, VL and VNNI. amx: tiles of int8 and bfloat16, AVX512_BF16 and AVX512_FP16.
enum class Path { none, avx2, avx512, amx };

// The one that `set_path` chose.
Path path();

}  // namespace mixtral

#define MIXTRAL_BEGIN_AVX2 _Pragma("GCC push_options") _Pragma("GCC target(\"avx2,fma,f16c\")")
#define MIXTRAL_BEGIN_AVX512 \
    _Pragma("GCC push_options") _Pragma("GCC target(\"avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni\")")
// The tiles' own instructions are in amx.h and need no permission.
#define MIXTRAL_BEGIN_AMX \
    _Pragma("GCC push_options") _Pragma( \
        "GCC target(\"avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx512fp16\")")
#define MIXTRAL_END _Pragma("GCC pop_options")
