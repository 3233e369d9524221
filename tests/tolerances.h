/* tolerances.h: every tolerance of the tests, each beside its reason. Widening one is a commit of its own, with the
 * measured distribution. One section a directory of tests. */
#ifndef BS_TOLERANCES_H
#define BS_TOLERANCES_H

#endif
