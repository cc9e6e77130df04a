// Which row lives where, without any disk.
#include "store/segment_map.h"

#include <map>
#include <random>
#include <vector>

#include "check.h"
#include "store/key_parts.h"
#include "test_store.h"

namespace oneemb {
namespace {

constexpr int64_t kSlots = 100;

struct Fixture {
  SegmentMap map{kSlots};
  int64_t a = map.Add(std::make_shared<Segment>());
  int64_t b = map.Add(std::make_shared<Segment>());

  uint64_t Where(Key key) const {
    uint64_t location = 0;
    std::shared_ptr<const SegmentTable> table;
    map.Find({&key, 1}, &location, &table);
    return location;
  }
  void Publish(Key key, uint64_t location) {
    CHECK_OK(map.Publish(KeyParts({&key, 1}), &location));
  }
  void Move(Key key, uint64_t from, uint64_t to) {
    CHECK_OK(map.Move({&key, 1}, &from, &to));
  }
  // Live slots of both segments, as 'a' and 'b' with their numbers.
  std::string Live() const {
    std::string live;
    for (const SegmentView& view : map.Capture()) {
      for (int64_t s = view.live.NextSet(0); s < kSlots;
           s = view.live.NextSet(s + 1)) {
        live += std::to_string(s) + (view.num_slots > 0 ? "! " : " ");
      }
      live += "; ";
    }
    return live;
  }
};

TEST(ANewerVersionTakesThePlaceOfTheOlder) {
  Fixture f;
  f.Publish({1, 0}, f.map.Location(f.a, 3));
  CHECK_EQ(f.Live(), "3 ; ");
  f.Publish({1, 0}, f.map.Location(f.b, 99));
  CHECK_EQ(f.Live(), "99 ; ");
  CHECK_EQ(f.map.size(), 1);
  CHECK_EQ(f.map.PlaceOf(f.Where({1, 0})), f.b);
  CHECK_EQ(f.map.SlotOf(f.Where({1, 0})), 99);
}

TEST(OfAKeyThatOccursTwiceOneSlotLives) {
  Fixture f;
  const Key keys[] = {{1, 0}, {1, 0}};
  const uint64_t locations[] = {f.map.Location(f.a, 0), f.map.Location(f.a, 1)};
  CHECK_OK(f.map.Publish(KeyParts({keys, 2}), locations));
  CHECK_EQ(f.Live(), "1 ; ");
  CHECK_EQ(f.Where({1, 0}), locations[1]);
}

// Large enough for several threads; with keys twice in a batch, and again in
// the next.
TEST(LargeBatchesAgreeWithAMap) {
  constexpr int64_t kKeys = 10'000;
  SegmentMap map(kKeys);
  std::mt19937_64 random(1);
  std::map<Key, uint64_t> expected;
  for (int batch = 0; batch < 3; ++batch) {
    const int64_t place = map.Add(std::make_shared<Segment>());
    std::vector<Key> keys;
    std::vector<uint64_t> locations;
    for (int64_t slot = 0; slot < kKeys; ++slot) {
      keys.push_back(RandomKey(&random, 6000));
      locations.push_back(map.Location(place, slot));
      expected[keys.back()] = locations.back();
    }
    CHECK_OK(map.Publish(KeyParts({keys.data(), kKeys}), locations.data()));
  }
  CHECK_EQ(map.size(), static_cast<int64_t>(expected.size()));
  for (const auto& [key, location] : expected) {
    uint64_t found = 0;
    std::shared_ptr<const SegmentTable> table;
    map.Find({&key, 1}, &found, &table);
    CHECK_EQ(found, location);
  }
  int64_t live = 0;
  for (const SegmentView& view : map.Capture()) live += view.live.Count();
  CHECK_EQ(live, map.size());
}

TEST(AMoveNeverBringsBackAnOlderVersion) {
  Fixture f;
  const uint64_t old = f.map.Location(f.a, 0);
  const uint64_t copy = f.map.Location(f.b, 0);
  const uint64_t newer = f.map.Location(f.b, 7);
  f.Publish({1, 0}, old);
  f.Publish({1, 0}, newer);  // between the copy and the move
  f.Move({1, 0}, old, copy);
  CHECK_EQ(f.Where({1, 0}), newer);
  CHECK_EQ(f.Live(), "7 ; ");
  uint8_t erased = 0;
  const Key key{1, 0};
  f.map.Erase({&key, 1}, &erased);
  CHECK_EQ(erased, 1);
  f.Move({1, 0}, newer, copy);  // nor one that was erased
  CHECK_EQ(f.Where({1, 0}), kNoLocation);
  CHECK_EQ(f.Live(), "");
}

TEST(AMoveOfTheNewestVersionMovesIt) {
  Fixture f;
  f.Publish({1, 0}, f.map.Location(f.a, 0));
  f.Move({1, 0}, f.map.Location(f.a, 0), f.map.Location(f.b, 5));
  CHECK_EQ(f.Where({1, 0}), f.map.Location(f.b, 5));
  CHECK_EQ(f.Live(), "5 ; ");
}

using Places = std::vector<int64_t>;

Places Victims(const SegmentMap& map, double utilisation, bool only_urgent) {
  CompactionPolicy policy;
  policy.utilisation = utilisation;
  policy.most_fragments = 4;
  Places places;
  for (const Victim& victim : map.PickVictims(policy, only_urgent)) {
    places.push_back(victim.place);
  }
  return places;
}

TEST(VictimsAreClosedAndWorthIt) {
  Fixture f;
  for (uint64_t id = 0; id < 100; ++id) {
    f.Publish({id, 0}, f.map.Location(f.a, static_cast<int64_t>(id)));
  }
  CHECK(Victims(f.map, 0.7, false).empty());  // open
  f.map.Close(f.a, 100, true);
  CHECK(Victims(f.map, 0.7, false).empty());  // all live
  for (uint64_t id = 0; id < 80; ++id) {
    f.Publish({id, 0}, f.map.Location(f.b, static_cast<int64_t>(id)));
  }
  // 20 % live, but less than a segment of dead slots: padding may be that much.
  CHECK(Victims(f.map, 0.7, false).empty());
  f.map.Close(f.b, 100, true);
  CHECK(Victims(f.map, 0.7, false) == Places{f.a});  // 100 of 200 slots
  CHECK(Victims(f.map, 0.4, false).empty());
  CHECK(Victims(f.map, 0.7, true).empty());
  f.map.Pin(f.a);
  CHECK(Victims(f.map, 0.7, false).empty());
}

TEST(SegmentsThatAreDeadOrNotSealedComeFirst) {
  Fixture f;
  f.Publish({1, 0}, f.map.Location(f.a, 0));
  f.map.Close(f.a, 1, false);
  CHECK(Victims(f.map, 0.7, true) == Places{f.a});
  Fixture g;
  g.map.Close(g.b, 1, true);
  CHECK(Victims(g.map, 0.7, true) == Places{g.b});
  g.map.Remove(g.b);
  CHECK(Victims(g.map, 0.7, true).empty());
  // Its place is used again.
  CHECK_EQ(g.map.Add(std::make_shared<Segment>()), g.b);
}

// Closed segments, one a number: of so many rows, all live.
Places AddSegments(SegmentMap* map, const std::vector<int64_t>& sizes) {
  Places places;
  uint64_t id = static_cast<uint64_t>(map->size());
  for (const int64_t size : sizes) {
    const int64_t place = map->Add(std::make_shared<Segment>());
    for (int64_t slot = 0; slot < size; ++slot) {
      const Key key{id++, 0};
      const uint64_t location = map->Location(place, slot);
      CHECK(map->Publish(KeyParts({&key, 1}), &location).ok());
    }
    map->Close(place, size, true);
    places.push_back(place);
  }
  return places;
}

TEST(SmallSegmentsAreMergedWhereThereAreMany) {
  SegmentMap map(100, 800);
  Places p = AddSegments(&map, {50, 100, 800, 3, 1, 1, 30});
  CHECK(Victims(map, 0.7, false).empty());  // four small ones, and whole ones
  p.push_back(AddSegments(&map, {6}).front());
  CHECK((Victims(map, 0.7, false) == Places{p[4], p[5]}));  // 3 is above 1 + 1
  CHECK(Victims(map, 0.7, true).empty());
  map.Pin(p[4]);
  CHECK(Victims(map, 0.7, false).empty());  // it stays: four again
}

TEST(SmallSegmentsAreMergedUpToAQuarterOfAWholeOne) {
  SegmentMap map(100);
  const Places p = AddSegments(&map, {12, 6, 6, 40, 40, 2});
  // 2 + 6 (two at least) + 6 + 12 would be 26.
  CHECK((Victims(map, 0.7, false) == Places{p[5], p[1], p[2]}));
  SegmentMap large(100);
  const Places q = AddSegments(&large, {49, 48, 47, 46, 45});
  CHECK((Victims(large, 0.7, false) == Places{q[4], q[3]}));
}

}  // namespace
}  // namespace oneemb
