# BS_MPI: an MPI-3 library for C. Sets MPI_CFLAGS and MPI_LIBS; an error without one.
# Tried in order: --with-mpi=DIR or mpicc, by its own words (-showme: OpenMPI, -show: MPICH and its kin), then pkg-config.
# Only comm/ is compiled with these flags, so the compiler stays CC everywhere.
AC_DEFUN([BS_MPI], [
    AC_ARG_WITH([mpi], [AS_HELP_STRING([--with-mpi=DIR], [MPI installed in DIR (bin/mpicc)])], [], [with_mpi=auto])
    AS_CASE([$with_mpi],
        [no], [AC_MSG_ERROR([--without-mpi: bitshard needs MPI])],
        [auto|yes], [AC_PATH_PROG([MPICC], [mpicc])],
        [MPICC=$with_mpi/bin/mpicc
         AS_IF([test ! -x "$MPICC"], [AC_MSG_ERROR([--with-mpi=$with_mpi: no bin/mpicc there])])])
    MPI_NAME=
    AS_IF([test -n "$MPICC"], [
        AS_IF([bs_show=`$MPICC --showme:compile 2>/dev/null`],
            [MPI_CFLAGS=$bs_show MPI_LIBS=`$MPICC --showme:link` MPI_NAME=OpenMPI],
            [bs_show=`$MPICC -show 2>/dev/null`], [
                for bs_word in $bs_show; do
                    AS_CASE([$bs_word], [-I*|-D*], [MPI_CFLAGS="$MPI_CFLAGS $bs_word"],
                        [-L*|-l*|-Wl,*], [MPI_LIBS="$MPI_LIBS $bs_word"])
                done
                MPI_NAME=MPICH])])
    AS_IF([test -z "$MPI_LIBS"],
        [PKG_CHECK_MODULES([MPI], [ompi-c], [MPI_NAME=OpenMPI],
            [PKG_CHECK_MODULES([MPI], [mpich], [MPI_NAME=MPICH],
                [AC_MSG_ERROR([no MPI found: install libopenmpi-dev and openmpi-bin, load an MPI module, or give --with-mpi=DIR])])])])
    AC_SUBST([MPI_CFLAGS])
    AC_SUBST([MPI_LIBS])
    bs_cflags=$CFLAGS bs_libs=$LIBS
    CFLAGS="$CFLAGS $MPI_CFLAGS" LIBS="$MPI_LIBS $LIBS"
    AC_MSG_CHECKING([whether $MPI_NAME is MPI-3])
    AC_LINK_IFELSE([AC_LANG_PROGRAM([[#include <mpi.h>
        #if MPI_VERSION < 3
        #error too old
        #endif]], [[MPI_Request r; return MPI_Ibcast(0, 0, MPI_BYTE, 0, MPI_COMM_WORLD, &r);]])],
        [AC_MSG_RESULT([yes])],
        [AC_MSG_RESULT([no]); AC_MSG_ERROR([a program with MPI-3 calls does not link; see config.log])])
    CFLAGS=$bs_cflags LIBS=$bs_libs
])
