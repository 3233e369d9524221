# BS_HDF5: HDF5 >= 1.10, serial or parallel. Sets HDF5_CFLAGS and HDF5_LIBS; an error without one.
# Tried in order: --with-hdf5=DIR, pkg-config hdf5 and hdf5-serial, h5cc -show.
AC_DEFUN([BS_HDF5], [
    AC_ARG_WITH([hdf5], [AS_HELP_STRING([--with-hdf5=DIR], [HDF5 installed in DIR])], [], [with_hdf5=auto])
    AS_CASE([$with_hdf5],
        [no], [AC_MSG_ERROR([--without-hdf5: bitshard needs HDF5 for its snapshots])],
        [auto|yes], [
            PKG_CHECK_MODULES([HDF5], [hdf5 >= 1.10], [:],
                [PKG_CHECK_MODULES([HDF5], [hdf5-serial >= 1.10], [:], [
                    AC_PATH_PROG([H5CC], [h5cc])
                    AS_IF([test -n "$H5CC"], [
                        for bs_word in `$H5CC -show`; do
                            AS_CASE([$bs_word], [-I*|-D*], [HDF5_CFLAGS="$HDF5_CFLAGS $bs_word"],
                                [-L*|-l*|-Wl,*|*.so|*.a], [HDF5_LIBS="$HDF5_LIBS $bs_word"])
                        done])])])],
        [HDF5_CFLAGS="-I$with_hdf5/include" HDF5_LIBS="-L$with_hdf5/lib -Wl,-rpath,$with_hdf5/lib -lhdf5"])
    bs_cflags=$CFLAGS bs_libs=$LIBS bs_found=no
    # hdf5.h of a parallel build includes mpi.h: only for its types, we call nothing of it.
    for bs_mpi in no yes; do
        AS_IF([test $bs_mpi = yes], [HDF5_CFLAGS="$HDF5_CFLAGS $MPI_CFLAGS" HDF5_LIBS="$HDF5_LIBS $MPI_LIBS"])
        CFLAGS="$bs_cflags $HDF5_CFLAGS" LIBS="$HDF5_LIBS $bs_libs"
        AC_MSG_CHECKING([for a usable HDF5, parallel: $bs_mpi])
        AC_LINK_IFELSE([AC_LANG_PROGRAM([[#include <hdf5.h>
            #if !H5_VERSION_GE(1, 10, 0)
            #error too old
            #endif]], [[return H5open();]])],
            [bs_found=yes], [])
        AC_MSG_RESULT([$bs_found])
        AS_IF([test $bs_found = yes], [break])
    done
    AS_IF([test $bs_found = no],
        [AC_MSG_ERROR([no HDF5 >= 1.10 found: install libhdf5-dev, load an hdf5 module, or give --with-hdf5=DIR])])
    CFLAGS=$bs_cflags LIBS=$bs_libs
])
