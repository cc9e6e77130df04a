#include "cuda/update_rows.h"

namespace oneemb::gpu {

ONEEMB_DEFINE_UPDATE_ROWS(Adagrad)
ONEEMB_DEFINE_UPDATE_ROWS(RowwiseAdagrad)

}  // namespace oneemb::gpu
