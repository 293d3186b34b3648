/* FOLD_0 .. FOLD_3: the steps that turn LANES vectors into one vector of their lane sums.
 *
 * A step adds two shuffles of the same two vectors a and b, so that each lane of the result holds
 * half as many summands of one of them. After all steps lane j holds the sum over vector j. Float
 * steps start inside 128-bit blocks, where one instruction does each shuffle.
 */
#undef FOLD_0
#undef FOLD_1
#undef FOLD_2
#undef FOLD_3
#undef FOLD_LEVELS
#undef FOLD
#define FOLD(low, high) (__builtin_shufflevector low + __builtin_shufflevector high)

#if LANES == 2 && ELEMENT == 2
#define FOLD_LEVELS 1
#define FOLD_0(a, b) FOLD((a, b, 0, 2), (a, b, 1, 3))
#elif LANES == 4 && ELEMENT != 2
#define FOLD_LEVELS 2
#define FOLD_0(a, b) FOLD((a, b, 0, 4, 1, 5), (a, b, 2, 6, 3, 7))
#define FOLD_1(a, b) FOLD((a, b, 0, 1, 4, 5), (a, b, 2, 3, 6, 7))
#elif LANES == 4 && ELEMENT == 2
#define FOLD_LEVELS 2
#define FOLD_0(a, b) FOLD((a, b, 0, 4, 2, 6), (a, b, 1, 5, 3, 7))
#define FOLD_1(a, b) FOLD((a, b, 0, 1, 4, 5), (a, b, 2, 3, 6, 7))
#elif LANES == 8 && ELEMENT != 2
#define FOLD_LEVELS 3
#define FOLD_0(a, b) FOLD((a, b, 0, 8, 1, 9, 4, 12, 5, 13), (a, b, 2, 10, 3, 11, 6, 14, 7, 15))
#define FOLD_1(a, b) FOLD((a, b, 0, 1, 8, 9, 4, 5, 12, 13), (a, b, 2, 3, 10, 11, 6, 7, 14, 15))
#define FOLD_2(a, b) FOLD((a, b, 0, 1, 2, 3, 8, 9, 10, 11), (a, b, 4, 5, 6, 7, 12, 13, 14, 15))
#elif LANES == 8 && ELEMENT == 2
#define FOLD_LEVELS 3
#define FOLD_0(a, b) FOLD((a, b, 0, 8, 2, 10, 4, 12, 6, 14), (a, b, 1, 9, 3, 11, 5, 13, 7, 15))
#define FOLD_1(a, b) FOLD((a, b, 0, 1, 8, 9, 4, 5, 12, 13), (a, b, 2, 3, 10, 11, 6, 7, 14, 15))
#define FOLD_2(a, b) FOLD((a, b, 0, 1, 2, 3, 8, 9, 10, 11), (a, b, 4, 5, 6, 7, 12, 13, 14, 15))
#elif LANES == 16 && ELEMENT != 2
#define FOLD_LEVELS 4
#define FOLD_0(a, b) \
    FOLD((a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29), \
         (a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31))
#define FOLD_1(a, b) \
    FOLD((a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29), \
         (a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
#define FOLD_2(a, b) \
    FOLD((a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27), \
         (a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
#define FOLD_3(a, b) \
    FOLD((a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23), \
         (a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
#endif
