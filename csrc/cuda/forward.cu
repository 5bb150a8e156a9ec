// Forward over a whole bank: prepare all rows, a first pass, what it has left is put together, a second pass for the
// student's gradient, for the selection's verdicts, or for both, what it has left, and the buffer for queries that
// limits do not serve.
#include <algorithm>
#include <iterator>

#include "search.cuh"
#include "sides.cuh"

namespace action {
namespace {

/// How a selection is made, and its memory.
struct Search {
  int64_t tiles_of_group = 0;  // 0: the buffer does it all, or there is no selection
  Placement placement;
  BufferPlan buffer{};
  int* found = nullptr;  // [G, N] keys of a query, or -1: the buffer has to select; with limits, as those below
  float* limits = nullptr;
  float* query_largest = nullptr;  // only for rows that are not normalised, as the next two
  float* bank_largest = nullptr;
  int* longest = nullptr;
  float* bank_labels = nullptr;  // as the passes compare them, placed
  int* floors = nullptr;         // where splits of the buffer's walk tell each other of what they have found

  bool by_limits() const { return tiles_of_group > 0; }
};

class Steps {
 public:
  Steps(Call& call, const Forward& p)
      : queue_(call.queue),
        memory_(call.memory),
        p_(p),
        g_(p.shape.groups),
        n_(p.shape.queries),
        m_(p.shape.rows),
        tiles_(g_ * ceil_div(n_, kBlock)),
        format_(format_of(p)) {}

  void run() {
    if (p_.selected.k > 0) plan_search();
    arrived_ = memory_.take_if<int>(p_.softmax() || search_.by_limits(), tiles_);
    prepare_rows();
    const bool limited = search_.by_limits();
    if (p_.softmax() || limited) first_pass();
    if (p_.student_grad || limited) second_pass();
    if (p_.selected.k > 0) select_again();
  }

 private:
  void plan_search() {
    const int64_t k = p_.selected.k;
    search_.tiles_of_group = tiles_of_group(tiles_, m_, k, sharers(format_.dtype, format_.tf32));
    search_.buffer = plan_buffer(tiles_, m_, k);
    if (search_.by_limits()) {
      search_.placement = placement_of(m_, kBlock * search_.tiles_of_group);
      search_.found = memory_.take<int>(g_ * n_);  // first of all: tests look there
      search_.limits = memory_.take<float>(g_ * n_);
      search_.query_largest = memory_.take_if<float>(!p_.normalize, g_ * n_);
      search_.bank_largest = memory_.take_if<float>(!p_.normalize, g_ * m_);
      search_.longest = memory_.take_if<int>(!p_.normalize, g_);
    }
    const int64_t num_splits = search_.buffer.splits.count;
    search_.floors = memory_.take_if<int>(num_splits > 1, g_ * n_ * num_splits);
  }

  void prepare_rows() {
    sides_ = take_sides(memory_, p_, format_);
    Prepare all = prepare_of(p_, sides_);
    all.sets[0].largest = search_.query_largest;
    all.sets[2].largest = search_.bank_largest;
    all.sets[2].placement = search_.placement;
    if (search_.by_limits() && p_.bank_labels) {
      search_.bank_labels = memory_.take<float>(g_ * sides_.bank.padded);
      all.sets[2].labels = p_.bank_labels;
      all.sets[2].narrow_labels = search_.bank_labels;
    }
    if (search_.floors) all.fills[0] = {search_.floors, g_ * n_ * search_.buffer.splits.count, INT32_MIN};
    if (arrived_) all.fills[1] = {arrived_, tiles_, 0};
    if (search_.longest) all.fills[2] = {search_.longest, g_, 0};
    prepare(queue_, all, format_.dtype);
  }

  void first_pass() {
    const bool limited = search_.by_limits(), pair = p_.teacher.given();
    terms_ = memory_.take_if<float>(p_.student_grad, g_ * sides_.student.padded * kTerms);
    const int64_t before = memory_.mark(), size = limited ? search_.tiles_of_group : 1;
    const Splits parts = splits(tiles_, m_, kBlock * size);

    BankPass pass{};
    pass.student = sides_.student;
    pass.teacher = sides_.teacher;
    pass.bank = sides_.bank;
    pass.num_splits = parts.count;
    pass.span = parts.span;
    pass.student_factor = static_cast<float>(kLog2e / p_.student_temp);
    pass.teacher_factor = static_cast<float>(kLog2e / p_.teacher_temp);
    pass.statistics = memory_.take_if<float>(p_.softmax(), (pair ? 6 : 2) * parts.count * g_ * n_);
    if (limited) {
      pass.line = ceil_div(ceil_div(m_, kBlock), size) * sharers(format_.dtype, format_.tf32);
      pass.maxima = memory_.take<float>(g_ * n_ * pass.line);
      pass.tiles_of_group = static_cast<uint32_t>(size);
      pass.query_labels = p_.query_labels;
      pass.bank_labels = search_.bank_labels;
      pass.bank_largest = search_.bank_largest;
      pass.longest = search_.longest;
    }
    pass.arrived = arrived_;
    if (p_.softmax()) {
      pass.merge.sums = pass.statistics;
      pass.merge.scales = scales_of(p_, sides_);
      pass.merge.kl = p_.kl;
      pass.merge.statistics = p_.statistics;
      pass.merge.terms = terms_;
      pass.merge.num_splits = parts.count;
      pass.merge.total = g_ * n_;
    }
    bank_pass(queue_, pass, format_, g_);

    if (limited) {
      Limits limits{};
      limits.maxima = pass.maxima;
      limits.query_largest = search_.query_largest;
      limits.longest = reinterpret_cast<const float*>(search_.longest);
      limits.query_labels = p_.query_labels;
      limits.limits = search_.limits;
      limits.found = search_.found;
      limits.total = g_ * n_;
      limits.queries = n_;
      limits.line = static_cast<int>(pass.line);
      limits.k = static_cast<int>(p_.selected.k);
      limits.features = static_cast<int>(p_.shape.features);
      limits.error = product_error(format_.width);
      merge_and_limit(queue_, pass.merge, limits);
    }
    memory_.release(before);
  }

  void second_pass() {
    const bool limited = search_.by_limits();
    const Splits parts = splits_of_pass(sides_, g_, false, p_.student_grad);
    if (limited) {
      words_.limits = search_.limits;
      words_.query_labels = p_.query_labels;
      words_.total = g_ * n_;
      words_.capacity = static_cast<int>(word_capacity(p_.selected.k, parts.count));
      words_.line = std::max(parts.count * words_.capacity, search_.buffer.keys());
      words_.words = memory_.take<int64_t>(g_ * n_ * words_.line);
      words_.counts = memory_.take<int>(parts.count * g_ * n_);
    }
    const int64_t before = memory_.mark();
    Finish finish{};
    if (p_.student_grad) {
      GradientSteps steps = sum_gradient(memory_, p_, sides_, terms_, p_.student_grad, false);
      steps.pass.words = words_;
      steps.pass.bank_labels = search_.bank_labels;
      gradient(queue_, steps.pass, format_, false);
      finish = steps.finish;
    } else {
      VerdictsPass pass{};
      pass.query = sides_.student;
      pass.bank = sides_.bank;
      pass.bank_labels = search_.bank_labels;
      pass.num_splits = parts.count;
      pass.span = parts.span;
      pass.words = words_;
      verdicts(queue_, pass, format_, g_);
    }
    finish_and_collect(queue_, finish, limited ? collection(parts.count) : Collect{}, format_);
    memory_.release(before);
  }

  Collect collection(int64_t num_splits) const {
    Collect collect{};
    collect.query = sides_.student;
    collect.bank = sides_.bank;
    collect.pitch = format_.pitch();
    collect.placement = search_.placement;
    collect.words = words_.words;
    collect.counts = words_.counts;
    collect.found = search_.found;
    collect.out = p_.selected;
    collect.line = words_.line;
    collect.total = g_ * n_;
    collect.num_splits = static_cast<int>(num_splits);
    collect.capacity = words_.capacity;
    collect.most = static_cast<int>(std::min<int64_t>(words_.line, kSorted));
    return collect;
  }

  /// With the keys in the place of words where there are some.
  void select_again() {
    const BufferPlan& plan = search_.buffer;
    Buffered pass{};
    pass.query = sides_.student;
    pass.bank = sides_.bank;
    pass.query_labels = p_.query_labels;
    pass.bank_labels = p_.bank_labels;
    pass.found = search_.found;
    pass.arrived = arrived_;
    pass.out = p_.selected;
    pass.line = search_.by_limits() ? words_.line : plan.keys();
    pass.keys = search_.by_limits() ? words_.words : memory_.take<int64_t>(g_ * n_ * pass.line);
    pass.buffer = memory_.take<int64_t>(plan.running * kBlock * plan.capacity);
    pass.floors = search_.floors;
    pass.works = plan.works;
    pass.num_splits = plan.splits.count;
    pass.span = plan.splits.span;
    pass.placement = search_.placement;
    pass.k = static_cast<int>(plan.kept);
    pass.limit = static_cast<int>(plan.limit);
    pass.capacity = static_cast<int>(plan.capacity);
    pass.quota = static_cast<int>(plan.quota);
    buffered(queue_, pass, format_, plan.running);
    if (!search_.by_limits()) order(queue_, p_.selected, pass.keys, g_ * n_, pass.line, pass.line);
  }

  Queue& queue_;
  Workspace& memory_;
  const Forward& p_;
  const int64_t g_, n_, m_, tiles_;  // the last: of queries, in all groups
  const Format format_;
  Sides sides_{};
  Search search_;
  int* arrived_ = nullptr;  // [tiles] zeros, for the last block of a tile in the one step that has such
  float* terms_ = nullptr;  // [G, N padded, kTerms]
  Words words_{};
};

}  // namespace

void forward(Call& call, const Forward& p) { Steps(call, p).run(); }

}  // namespace action

using namespace action;

/// How the buffer walks through a bank, on a GPU of so many multiprocessors: the eight numbers of a BufferPlan in
/// order.
ACTION_EXPORT void action_buffer_plan(int64_t multiprocessors, int64_t queries, int64_t rows, int64_t k,
                                      int64_t* plan) {
  const BufferPlan p = plan_buffer(ceil_div(queries, kBlock), rows, k, multiprocessors);
  const int64_t numbers[] = {p.works, p.splits.count, p.splits.span, p.running, p.kept, p.limit, p.capacity, p.quota};
  std::copy(std::begin(numbers), std::end(numbers), plan);
}
