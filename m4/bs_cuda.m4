# BS_CUDA: nvcc and the CUDA runtime (static). Sets NVCC, NVCC_GENCODE, CUDA_LIBS, CUDA_CPPFLAGS; conditional HAVE_CUDA.
# NVCC_GENCODE_90A: the same with sm_90a in sm_90's place, for the files that use what sm_90a alone has (warpgroup
# products); BS_HAVE_SM90A where nvcc compiles that.
# On where it is found, off otherwise; --with-cuda[=DIR] and not found is an error.
AC_DEFUN([BS_CUDA], [
    AC_ARG_WITH([cuda], [AS_HELP_STRING([--with-cuda@<:@=DIR@:>@], [CUDA Toolkit in DIR; --without-cuda: CPU ranks only])],
        [], [with_cuda=auto])
    AC_ARG_VAR([NVCC_GENCODE], [architectures for nvcc (default: sm_80 and sm_90, PTX for later ones)])
    cuda_found=no NVCC=
    AS_CASE([$with_cuda],
        [no], [],
        [auto|yes], [AC_PATH_PROG([NVCC], [nvcc], [], [$PATH:/usr/local/cuda/bin])],
        [NVCC=$with_cuda/bin/nvcc])
    AS_IF([test -n "$NVCC"], [
        CUDA_DIR=`dirname "$NVCC"`
        CUDA_DIR=`dirname "$CUDA_DIR"`
        AS_IF([test -z "$NVCC_GENCODE"],
            [NVCC_GENCODE="-gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=@<:@sm_90,compute_90@:>@"])
        AC_MSG_CHECKING([whether $NVCC compiles and links])
        echo '__global__ void k() {} extern "C" int run() { k<<<1, 1>>>(); return cudaGetLastError(); }' >conftest.cu
        echo 'int run(void); int main(void) { return run(); }' >conftest_main.c
        for bs_lib in lib lib64 targets/x86_64-linux/lib; do
            AS_IF([test -f "$CUDA_DIR/$bs_lib/libcudart_static.a"], [CUDA_LIBDIR=$CUDA_DIR/$bs_lib])
        done
        CUDA_LIBS="-L$CUDA_LIBDIR -lcudart_static -lstdc++ -ldl -lrt -lpthread"
        AS_IF([$NVCC -ccbin $CXX $NVCC_GENCODE -c conftest.cu -o conftest_cu.o >&AS_MESSAGE_LOG_FD 2>&1 &&
               $CC conftest_main.c conftest_cu.o $CUDA_LIBS -o conftest_cuda >&AS_MESSAGE_LOG_FD 2>&1],
            [cuda_found=`$NVCC --version | sed -n 's/.*release \(@<:@0-9.@:>@*\).*/\1/p'`])
        rm -f conftest.cu conftest_main.c conftest_cu.o conftest_cuda
        AC_MSG_RESULT([$cuda_found])])
    AS_IF([test "$cuda_found" = no && test "$with_cuda" != auto && test "$with_cuda" != no],
        [AC_MSG_ERROR([--with-cuda: no working nvcc found; see config.log])])
    AS_IF([test "$cuda_found" = no], [CUDA_LIBS=],
        [CUDA_CPPFLAGS="-I$CUDA_DIR/include"
         AC_DEFINE([BS_HAVE_CUDA], [1], [Kernels for NVIDIA GPUs are built.])])
    NVCC_GENCODE_90A=$NVCC_GENCODE
    AS_IF([test "$cuda_found" != no], [
        AC_MSG_CHECKING([whether $NVCC compiles for sm_90a])
        cuda_90a=`echo "$NVCC_GENCODE " | sed 's/\@<:@sm_90,compute_90\@:>@/sm_90/g; s/_90\(@<:@^0-9a@:>@\)/_90a\1/g'`
        printf '%s\n' '__global__ void k() {' '#ifdef __CUDA_ARCH_FEAT_SM90_ALL' \
            'asm volatile("wgmma.fence.sync.aligned;");' '#endif' '}' >conftest.cu
        AS_CASE([$cuda_90a],
            [*sm_90a*],
                [AS_IF([$NVCC -ccbin $CXX $cuda_90a -c conftest.cu -o conftest_cu.o >&AS_MESSAGE_LOG_FD 2>&1],
                    [NVCC_GENCODE_90A=$cuda_90a
                     AC_DEFINE([BS_HAVE_SM90A], [1], [Kernels with warpgroup products (sm_90a) are built.])],
                    [cuda_90a=no])],
            [cuda_90a=no])
        rm -f conftest.cu conftest_cu.o
        AS_IF([test "$cuda_90a" = no], [AC_MSG_RESULT([no])], [AC_MSG_RESULT([yes])])])
    AC_SUBST([NVCC])
    AC_SUBST([NVCC_GENCODE_90A])
    AC_SUBST([CUDA_LIBS])
    AC_SUBST([CUDA_CPPFLAGS])
    AM_CONDITIONAL([HAVE_CUDA], [test "$cuda_found" != no])
])
