#include "cuda/update_rows.h"

namespace oneemb::gpu {

ONEEMB_DEFINE_UPDATE_ROWS(Sgd)
ONEEMB_DEFINE_UPDATE_ROWS(Momentum)

}  // namespace oneemb::gpu
