// Host memory that a GPU reads and writes by itself.
#pragma once

#include "store/buffer_source.h"

namespace oneemb::gpu {

// On huge pages: with small ones it is the translation of addresses that limits
// a GPU that gathers rows from there. Pinning memory takes long, so it is kept
// for later buffers: as much as is in use, until the process ends. A kernel may
// use the address that the host uses. Take is for threads that may wait for
// CUDA, Return for any.
BufferSource* PinnedBuffers();

// The device for threads that have used none yet.
void SetPinningDevice(int device);

}  // namespace oneemb::gpu
