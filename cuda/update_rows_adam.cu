#include "cuda/update_rows.h"

namespace oneemb::gpu {

ONEEMB_DEFINE_UPDATE_ROWS(Adam)
ONEEMB_DEFINE_UPDATE_ROWS(Amsgrad)

}  // namespace oneemb::gpu
