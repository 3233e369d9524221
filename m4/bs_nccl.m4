# BS_NCCL: NCCL >= 2.18, looked for only with CUDA: beside it, or where the compiler looks. Sets NCCL_CPPFLAGS; conditional
# HAVE_NCCL; BS_NCCL_LIBDIR is where the library was found, "" for a place that the loader knows.
# The program is not linked with it but opens it when ranks have GPUs, so that one build also runs where there is none.
AC_DEFUN([BS_NCCL], [
    AC_REQUIRE([BS_CUDA])
    AC_ARG_WITH([nccl], [AS_HELP_STRING([--with-nccl@<:@=DIR@:>@], [NCCL in DIR; --without-nccl: ranks on GPUs merge through MPI])],
        [], [with_nccl=auto])
    nccl_found=no NCCL_LIBDIR=
    AS_IF([test "$with_nccl" != no && test "$cuda_found" != no], [
        AS_CASE([$with_nccl],
            [auto|yes], [bs_nccl_dirs=$CUDA_LIBDIR],
            [NCCL_CPPFLAGS="-I$with_nccl/include" bs_nccl_dirs="$with_nccl/lib64 $with_nccl/lib"])
        for bs_lib in $bs_nccl_dirs; do
            AS_IF([test -e "$bs_lib/libnccl.so"], [NCCL_LIBDIR=$bs_lib])
        done
        # Not another one that the compiler or CUDA happens to have.
        AS_IF([test -n "$NCCL_CPPFLAGS" && test ! -e "$with_nccl/include/nccl.h" || test -n "$NCCL_CPPFLAGS" && test -z "$NCCL_LIBDIR"],
            [AC_MSG_ERROR([--with-nccl=$with_nccl: include/nccl.h or lib/libnccl.so is not there])])
        bs_cppflags=$CPPFLAGS bs_libs=$LIBS
        CPPFLAGS="$CPPFLAGS $NCCL_CPPFLAGS $CUDA_CPPFLAGS"
        LIBS="${NCCL_LIBDIR:+-L$NCCL_LIBDIR} -lnccl $CUDA_LIBS $LIBS"
        AC_MSG_CHECKING([for NCCL >= 2.18])
        AC_LINK_IFELSE([AC_LANG_PROGRAM([[#include <nccl.h>
            #if NCCL_VERSION_CODE < 21800
            #error too old
            #endif]], [[int v; return ncclGetVersion(&v);]])], [nccl_found=yes])
        AC_MSG_RESULT([$nccl_found])
        CPPFLAGS=$bs_cppflags LIBS=$bs_libs])
    AS_IF([test $nccl_found = no && test "$with_nccl" != auto && test "$with_nccl" != no],
        [AC_MSG_ERROR([--with-nccl: NCCL >= 2.18 with CUDA not found; see config.log])])
    AS_IF([test $nccl_found = no], [NCCL_CPPFLAGS=],
        [AC_DEFINE([BS_HAVE_NCCL], [1], [Collectives through NCCL are built.])
         AC_DEFINE_UNQUOTED([BS_NCCL_LIBDIR], ["$NCCL_LIBDIR"], [Where libnccl.so.2 was found; "" if the loader knows.])])
    AC_SUBST([NCCL_CPPFLAGS])
    AM_CONDITIONAL([HAVE_NCCL], [test $nccl_found = yes])
])
