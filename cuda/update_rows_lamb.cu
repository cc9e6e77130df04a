#include "cuda/update_rows.h"

namespace oneemb::gpu {

ONEEMB_DEFINE_UPDATE_ROWS(SmartDecayAdam)
ONEEMB_DEFINE_UPDATE_ROWS(Lamb)

}  // namespace oneemb::gpu
