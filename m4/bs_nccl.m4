# BS_NCCL: NCCL >= 2.18, looked for only with CUDA. Sets NCCL_CPPFLAGS and NCCL_LIBS; conditional HAVE_NCCL.
AC_DEFUN([BS_NCCL], [
    AC_REQUIRE([BS_CUDA])
    AC_ARG_WITH([nccl], [AS_HELP_STRING([--with-nccl@<:@=DIR@:>@], [NCCL in DIR; --without-nccl: ranks on GPUs merge through MPI])],
        [], [with_nccl=auto])
    nccl_found=no
    AS_IF([test "$with_nccl" != no && test "$cuda_found" != no], [
        AS_CASE([$with_nccl], [auto|yes], [], [NCCL_CPPFLAGS="-I$with_nccl/include" NCCL_LIBS="-L$with_nccl/lib"])
        NCCL_LIBS="$NCCL_LIBS -lnccl"
        bs_cppflags=$CPPFLAGS bs_libs=$LIBS
        CPPFLAGS="$CPPFLAGS $NCCL_CPPFLAGS $CUDA_CPPFLAGS" LIBS="$NCCL_LIBS $CUDA_LIBS $LIBS"
        AC_MSG_CHECKING([for NCCL >= 2.18])
        AC_LINK_IFELSE([AC_LANG_PROGRAM([[#include <nccl.h>
            #if NCCL_VERSION_CODE < 21800
            #error too old
            #endif]], [[int v; return ncclGetVersion(&v);]])], [nccl_found=yes])
        AC_MSG_RESULT([$nccl_found])
        CPPFLAGS=$bs_cppflags LIBS=$bs_libs])
    AS_IF([test $nccl_found = no && test "$with_nccl" != auto && test "$with_nccl" != no],
        [AC_MSG_ERROR([--with-nccl: NCCL >= 2.18 with CUDA not found; see config.log])])
    AS_IF([test $nccl_found = no], [NCCL_LIBS= NCCL_CPPFLAGS=])
    AC_SUBST([NCCL_CPPFLAGS])
    AC_SUBST([NCCL_LIBS])
    AM_CONDITIONAL([HAVE_NCCL], [test $nccl_found = yes])
])
