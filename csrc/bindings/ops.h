// The headers of all kernels, once. module.cpp binds the operations that they announce with FI_OP,
// and cuda_stub.cpp stands in for their CUDA launchers; CMakeLists.txt finds the sources by suffix.
#pragma once

#include "frozen_flow/frozen_flow.h"
#include "coupling/affine_coupling.h"
#include "density/density.h"
#include "density/patches.h"
#include "layout/squeeze.h"
#include "noise/noise.h"
#include "preprocess/preprocess.h"
#include "quantise/quantise.h"
#include "solver/adam.h"
