# BS_CBLAS: a CBLAS, OpenBLAS first. Sets CBLAS_CFLAGS and CBLAS_LIBS, defines HAVE_CBLAS and HAVE_OPENBLAS.
# Without one our own plain GEMM serves, and prefill is slower; requested but missing is an error.
AC_DEFUN([BS_CBLAS], [
    AC_ARG_WITH([cblas], [AS_HELP_STRING([--without-cblas], [use our own plain GEMM])], [], [with_cblas=auto])
    cblas_found=no
    AS_IF([test "$with_cblas" != no], [
        PKG_CHECK_MODULES([CBLAS], [openblas], [cblas_found=OpenBLAS],
            [PKG_CHECK_MODULES([CBLAS], [cblas], [cblas_found=cblas], [
                AC_CHECK_HEADER([cblas.h], [
                    AC_CHECK_LIB([openblas], [cblas_sgemm], [CBLAS_LIBS=-lopenblas cblas_found=OpenBLAS],
                        [AC_CHECK_LIB([cblas], [cblas_sgemm], [CBLAS_LIBS=-lcblas cblas_found=cblas])])])])])
        AS_IF([test $cblas_found = no && test "$with_cblas" != auto],
            [AC_MSG_ERROR([--with-cblas: no CBLAS found (libopenblas-dev)])])])
    AS_IF([test $cblas_found != no], [AC_DEFINE([HAVE_CBLAS], [1], [There is a CBLAS.])])
    AS_IF([test $cblas_found = OpenBLAS], [AC_DEFINE([HAVE_OPENBLAS], [1], [It is OpenBLAS.])])
    AC_SUBST([CBLAS_CFLAGS])
    AC_SUBST([CBLAS_LIBS])
])
