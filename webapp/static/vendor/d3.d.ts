// Types of `d3.js`, as far as Arborist uses it. Copied beside it by `scripts/vendor.js`.

export function pointer(event: Event, target?: Element): [number, number];

export interface Selection<E extends Element> {
  call(behaviour: (selection: Selection<E>, ...rest: any[]) => void, ...rest: any[]): Selection<E>;
  on(type: string, listener: ((event: any) => void) | null): Selection<E>;
  attr(name: string, value: string | number | null): Selection<E>;
  style(name: string, value: string | null): Selection<E>;
  node(): E;
}
export function select<E extends Element>(element: E): Selection<E>;

export interface ZoomTransform {
  readonly k: number;
  readonly x: number;
  readonly y: number;
  translate(x: number, y: number): ZoomTransform;
  scale(k: number): ZoomTransform;
}
export const zoomIdentity: ZoomTransform;
export interface Zoom<E extends Element> {
  (selection: Selection<E>): void;
  transform(selection: Selection<E>, transform: ZoomTransform): void;
  scaleExtent(extent: [number, number]): Zoom<E>;
  translateExtent(extent: [[number, number], [number, number]]): Zoom<E>;
  extent(extent: [[number, number], [number, number]]): Zoom<E>;
  filter(filter: (event: any) => boolean): Zoom<E>;
  on(type: string, listener: ((event: { transform: ZoomTransform; sourceEvent: Event | null }) => void) | null): Zoom<E>;
}
export function zoom<E extends Element>(): Zoom<E>;

/** After `tree` laid it out: x across the tree, y along its depth. */
export interface HierarchyNode<T> {
  data: T;
  depth: number;
  x: number;
  y: number;
  parent: HierarchyNode<T> | null;
  children?: HierarchyNode<T>[];
  each(visit: (node: HierarchyNode<T>) => void): HierarchyNode<T>;
}
export function hierarchy<T>(data: T, children: (data: T) => Iterable<T> | null | undefined): HierarchyNode<T>;
export interface TreeLayout<T> {
  (root: HierarchyNode<T>): HierarchyNode<T>;
  nodeSize(size: [number, number]): TreeLayout<T>;
  separation(distance: (a: HierarchyNode<T>, b: HierarchyNode<T>) => number): TreeLayout<T>;
}
export function tree<T>(): TreeLayout<T>;
