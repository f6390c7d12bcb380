// Winograd's minimal filtering F(m x m, 3 x 3), one dimension at a time; two dimensions nest it.
//
//     y = A^T [(G g) * (B^T d)]      d: m + 2 inputs, g: 3 taps, y: m outputs
//
// with interpolation points 0, +-p, +-q and infinity for m = 4, and 0, +-1 and infinity for m = 2.
// V is a float, a double or a vector of floats.
#pragma once

#include "common/macros.h"

namespace flowinv {

template <int kTile>
struct Winograd;

template <>
struct Winograd<4> {
  static constexpr int kPoints = 6;
  static constexpr double kP = 0.70710678118654752440, kQ = 1.41421356237309504880;
  static constexpr float kPP = 0.5f, kQQ = 2.0f, kSum = 2.5f;  // p^2, q^2 and p^2 + q^2; p q = 1

  static void filter(const double (&g)[3], double (&u)[6]) {
    const double points[5] = {0, kP, -kP, kQ, -kQ};
    for (int a = 0; a < 5; ++a) {
      double scale = 1;
      for (int b = 0; b < 5; ++b)
        if (b != a) scale *= points[a] - points[b];
      u[a] = (g[0] + points[a] * (g[1] + points[a] * g[2])) / scale;
    }
    u[5] = g[2];
  }

  template <class V>
  FI_HD static void input(const V (&d)[6], V (&v)[6]) {
    const V even_p = d[4] - kQQ * d[2], odd_p = float(kP) * (d[3] - kQQ * d[1]);
    const V even_q = d[4] - kPP * d[2], odd_q = float(kQ) * (d[3] - kPP * d[1]);
    v[0] = d[0] - kSum * d[2] + d[4];
    v[1] = even_p + odd_p;
    v[2] = even_p - odd_p;
    v[3] = even_q + odd_q;
    v[4] = even_q - odd_q;
    v[5] = d[1] - kSum * d[3] + d[5];
  }

  template <class V>
  FI_HD static void output(const V (&m)[6], V (&y)[4]) {
    const V sum_p = m[1] + m[2], difference_p = float(kP) * (m[1] - m[2]);
    const V sum_q = m[3] + m[4], difference_q = float(kQ) * (m[3] - m[4]);
    y[0] = m[0] + sum_p + sum_q;
    y[1] = difference_p + difference_q;
    y[2] = kPP * sum_p + kQQ * sum_q;
    y[3] = kPP * difference_p + kQQ * difference_q + m[5];
  }
};

template <>
struct Winograd<2> {
  static constexpr int kPoints = 4;

  static void filter(const double (&g)[3], double (&u)[4]) {
    u[0] = g[0];
    u[1] = 0.5 * (g[0] + g[1] + g[2]);
    u[2] = 0.5 * (g[0] - g[1] + g[2]);
    u[3] = g[2];
  }

  template <class V>
  FI_HD static void input(const V (&d)[4], V (&v)[4]) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[3] - d[1];
  }

  template <class V>
  FI_HD static void output(const V (&m)[4], V (&y)[2]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] + m[3];
  }
};

}  // namespace flowinv
